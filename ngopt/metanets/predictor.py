"""Updates of a metanet without autograd, in memory that is reused."""

from collections.abc import Sequence

import torch
from torch import Tensor, _foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

from ngopt import chunking
from ngopt.metanets.features import NUM_FEATURES, features_of
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.update_mlp import UpdateMLP, has_kernel, mlp_updates


class Predictor:
    """A metanet's `updates` of up to `capacity` elements at once.

    How they are computed is chosen here, once: by a Triton kernel from columns to
    updates, where there is one; by an `MLPInMemory`; else by `Metanet.updates`.

    inputs: features, then context, then a row of ones, (14 + d + 1, capacity); None for
    the kernel, whose features are never in memory.
    """

    def __init__(self, metanet: Metanet, capacity: int):
        self.metanet = metanet
        self.capacity = capacity
        like = next(metanet.parameters()).detach()
        self._made_for = capacity, like.device, like.dtype
        self._kernel_mlp: UpdateMLP | None = None
        self._mlp: MLPInMemory | None = None
        self.inputs: Tensor | None = None
        mlp = metanet.update_mlp()
        if mlp is not None and has_kernel(mlp):
            self._kernel_mlp = mlp
            return
        if mlp is not None:
            self._mlp = MLPInMemory(mlp, capacity)
        self.inputs = _ones(like, NUM_FEATURES + metanet.d_context + 1, capacity)

    @property
    def has_kernel(self) -> bool:
        return self._kernel_mlp is not None

    def fits(self, capacity: int, like: Tensor) -> bool:
        """Whether it was made for a capacity, and the device and dtype of weights."""
        return self._made_for == (capacity, like.device, like.dtype)

    def read_weights(self) -> None:
        """Reads the metanet's weights again; call it where they may have changed."""
        if self._mlp is not None:
            self._mlp.read_weights()

    def features(self, n: int) -> Tensor:
        """Memory for the features of n elements, (14, n)."""
        assert self.inputs is not None
        return self.inputs[:NUM_FEATURES, :n]

    def predicted(self, n: int, context: Tensor | None) -> Tensor:
        """Updates (n,) from `features` and a context, (n, d); overwritten by the next
        call."""
        assert self.inputs is not None
        inputs = self.inputs[:, :n]
        if context is not None:
            inputs[NUM_FEATURES:-1].copy_(context.mT)
        if self._mlp is not None:
            return self._mlp(inputs)
        stored = inputs[NUM_FEATURES:-1].mT if self.metanet.d_context else None
        return checked_updates(self.metanet, inputs[:NUM_FEATURES].mT, stored)

    def of_columns(self, columns: Sequence[Tensor], context: Tensor | None) -> Tensor:
        """Updates (n,) of any number of elements.

        columns: weight, gradient and momenta, (n,) each. context: (n, d), if any.
        """
        mlp = self._kernel_mlp
        if mlp is not None:
            weights = [x.detach() for x in mlp.weights_and_biases()]
            scales = [mlp.output_scale, mlp.magnitude_scale]
            return mlp_updates(list(columns), context, weights, scales)
        assert self.inputs is not None
        update = self.inputs.new_empty(len(columns[0]))
        tensors = [update, *columns]
        if context is not None:
            tensors.append(context)
        # pieces of equal length: a short one costs as many calls as a long one
        count = chunking.ceil_div(len(update), self.capacity)
        for out, *piece in chunking.pieces(tensors, count):
            piece_context = None if context is None else piece.pop()
            features_of(piece, out, self.features(len(out)))
            out.copy_(self.predicted(len(out), piece_context))
        return update


class MLPInMemory:
    """An `UpdateMLP` without autograd: inputs and a row of ones (d_in + d_context + 1,
    n) -> updates (n,), overwritten by the next call.

    Biases multiply rows of ones: a layer is one product, and one pass for its ReLU.
    """

    def __init__(self, mlp: UpdateMLP, capacity: int):
        self._mlp = mlp
        linears = mlp.linears
        like = linears[0].weight.detach()
        scales = mlp.output_scale, mlp.magnitude_scale
        self._scales = like.new_tensor(scales).unsqueeze(-1)
        most = chunking.total_chunk_size(chunking.HIDDEN_ELEMENTS, like)
        self._limit = min(capacity, most)
        self._hidden = []
        for layer in linears[1:]:
            self._hidden.append(_ones(like, layer.in_features + 1, self._limit))
        self._out = _ones(like, 2, capacity)
        # weight and bias of each layer side by side, and views of all these
        self._weights: list[Tensor] = []
        self._copies: list[Tensor] = []
        for layer in linears:
            matrix = like.new_empty(layer.out_features, layer.in_features + 1)
            self._weights.append(matrix)
            self._copies += [matrix[:, :-1], matrix[:, -1]]

    def read_weights(self) -> None:
        with torch.no_grad():
            _foreach_copy_(self._copies, self._mlp.weights_and_biases())
        self._weights[-1].mul_(self._scales)

    def __call__(self, inputs: Tensor) -> Tensor:
        n = inputs.shape[-1]
        out = self._out[:, :n]
        for elements in chunking.even_slices(n, self._limit):
            self._apply_layers(inputs[:, elements], out[:, elements])
        direction, magnitude = out
        return direction.mul_(magnitude.exp_())

    def _apply_layers(self, x: Tensor, out: Tensor) -> None:
        *weights, last = self._weights
        n = x.shape[-1]
        for weight, hidden in zip(weights, self._hidden, strict=True):
            used = hidden[:, :n]
            torch.mm(weight, x, out=used[:-1]).relu_()
            x = used
        torch.mm(last, x, out=out)


def checked_updates(
    metanet: Metanet, features: Tensor, context: Tensor | None
) -> Tensor:
    """The `updates` of a metanet. Raises ValueError unless there is one per element:
    (n, 1) would be viewed as the shape of the parameter."""
    values = metanet.updates(features, context)
    if values.shape != features.shape[:-1]:
        raise ValueError(
            f"{type(metanet).__name__}.updates: expected shape "
            f"{tuple(features.shape[:-1])}, one update for each row of features; got "
            f"{tuple(values.shape)}"
        )
    return values


def _ones(like: Tensor, count: int, length: int) -> Tensor:
    """Rows of ones, (count, length).

    Each begins on a cache line. No two are a power of two apart: they would share cache
    sets, and products would take a fifth longer.
    """
    line = 64 // like.element_size()
    stride = (chunking.ceil_div(length, line) + 1) * line
    return like.new_ones(count, stride)[:, :length]
