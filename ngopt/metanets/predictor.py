"""Updates of an `UpdateMLP` without autograd, in memory that is reused."""

from collections.abc import Sequence

import torch
from torch import Tensor, _foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

from ngopt import chunking
from ngopt.metanets.features import NUM_FEATURES, features_of
from ngopt.metanets.update_mlp import UpdateMLP, has_kernel, mlp_updates


class Predictor:
    """The updates of an MLP, of up to `capacity` elements at once.

    Where there is a Triton kernel from columns to updates, it is used, and features are
    never in memory. Else biases multiply rows of ones: a layer is one product, and one
    pass for its ReLU.
    """

    def __init__(self, mlp: UpdateMLP, capacity: int):
        linears = mlp.linears
        like = linears[0].weight.detach()
        self.mlp = mlp
        self.capacity = capacity
        self.has_kernel = has_kernel(mlp)
        self._made_for = capacity, like.device, like.dtype
        if self.has_kernel:
            return
        scales = mlp.output_scale, mlp.magnitude_scale
        self._scales = like.new_tensor(scales).unsqueeze(-1)
        most = chunking.total_chunk_size(chunking.HIDDEN_ELEMENTS, like)
        self._limit = min(capacity, most)
        # features, then context, then ones
        self._inputs = _ones(like, linears[0].in_features + 1, capacity)
        counts = [layer.in_features + 1 for layer in linears[1:]]
        self._hidden = [_ones(like, count, self._limit) for count in counts]
        self._out = _ones(like, 2, capacity)
        # weight and bias of each layer side by side, and views of all these
        self._weights: list[Tensor] = []
        self._copies: list[Tensor] = []
        for layer in linears:
            matrix = like.new_empty(layer.out_features, layer.in_features + 1)
            self._weights.append(matrix)
            self._copies += [matrix[:, :-1], matrix[:, -1]]

    def fits(self, capacity: int, like: Tensor) -> bool:
        """Whether it was made for a capacity, and the device and dtype of weights."""
        return self._made_for == (capacity, like.device, like.dtype)

    def read_weights(self) -> None:
        """Reads the MLP's weights again; call it where they may have changed."""
        if self.has_kernel:
            return
        with torch.no_grad():
            _foreach_copy_(self._copies, self.mlp.weights_and_biases())
        self._weights[-1].mul_(self._scales)

    def features(self, n: int) -> Tensor:
        """Memory for the features of n elements, (14, n)."""
        return self._inputs[:NUM_FEATURES, :n]

    def predicted(self, n: int, context: Tensor | None) -> Tensor:
        """Updates (n,) from `features` and a context, (n, d); overwritten by the next
        call."""
        inputs = self._inputs[:, :n]
        if context is not None:
            inputs[NUM_FEATURES:-1].copy_(context.mT)
        out = self._out[:, :n]
        *weights, last = self._weights
        for elements in chunking.even_slices(n, self._limit):
            x = inputs[:, elements]
            for weight, hidden in zip(weights, self._hidden, strict=True):
                used = hidden[:, : x.shape[-1]]
                torch.mm(weight, x, out=used[:-1]).relu_()
                x = used
            torch.mm(last, x, out=out[:, elements])
        direction, magnitude = out
        return direction.mul_(magnitude.exp_())

    def of_columns(self, columns: Sequence[Tensor], context: Tensor | None) -> Tensor:
        """Updates (n,) of any number of elements.

        columns: weight, gradient and momenta, (n,) each. context: (n, d), if any.
        """
        if self.has_kernel:
            weights = [x.detach() for x in self.mlp.weights_and_biases()]
            scales = [self.mlp.output_scale, self.mlp.magnitude_scale]
            return mlp_updates(list(columns), context, weights, scales)
        update = self._inputs.new_empty(len(columns[0]))
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


def _ones(like: Tensor, count: int, length: int) -> Tensor:
    """Rows of ones, (count, length).

    Each begins on a cache line. No two are a power of two apart: they would share cache
    sets, and products would take a fifth longer.
    """
    line = 64 // like.element_size()
    stride = (chunking.ceil_div(length, line) + 1) * line
    return like.new_ones(count, stride)[:, :length]
