"""The MLP that maps features of a parameter to its update (Metz et al. 2019), and its
updates without autograd, in memory that is reused."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, _foreach_copy_, nn  # pyright: ignore[reportPrivateImportUsage]

from ngopt import chunking
from ngopt.devices import has_triton
from ngopt.metanets.features import NUM_FEATURES, features_of

# Of an MLP with a kernel: widths of its two hidden layers, and features of the context.
WIDTHS, MAX_CONTEXT = (16, 32, 64), 16


class UpdateMLP(nn.Module):
    """update = output_scale * d * exp(magnitude_scale * m).

    Direction d and magnitude m are the two outputs of an MLP with ReLU (Metz et al.
    2019, App. C; there both scales are 1e-3).

    Shapes: features (*batch, n, d_in), and context (*batch, n, d_context) -> (*batch,
    n).
    """

    def __init__(
        self,
        d_in: int,
        hidden: Sequence[int],
        output_scale: float,
        magnitude_scale: float,
        d_context: int = 0,
    ):
        super().__init__()
        widths = d_in + d_context, *hidden
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 2))
        self.output_scale = output_scale
        self.magnitude_scale = magnitude_scale

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        # elements last, as they are in memory: products of few rows are fastest so
        x = features.mT
        if context is not None:
            x = torch.cat([x, context.mT], -2)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                x = (layer.weight @ x).add_(layer.bias.unsqueeze(-1))
            else:
                x = layer(x)
        direction, magnitude = x.unbind(-2)
        size = torch.exp(self.magnitude_scale * magnitude)
        return self.output_scale * direction * size

    @property
    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def weights_and_biases(self) -> list[Tensor]:
        """Weight and bias of every layer."""
        return [x for layer in self.linears for x in (layer.weight, layer.bias)]


@torch.library.custom_op("ngopt::mlp_updates", mutates_args=(), device_types="cuda")
def mlp_updates(
    columns: Sequence[Tensor],
    context: Tensor | None,
    weights: Sequence[Tensor],
    scales: Sequence[float],
) -> Tensor:
    """Updates (n,), float32, of elements with columns and context.

    weights: weight and bias of both hidden layers and of the last. scales: output_scale
    and magnitude_scale of the `UpdateMLP`.
    """
    from ngopt.metanets.mlp_kernel import launch  # needs Triton

    return launch(columns, context, weights, scales)


@mlp_updates.register_fake
def _(columns: Sequence[Tensor], *_: object) -> Tensor:
    return torch.empty_like(columns[0], dtype=torch.float32)


def has_kernel(mlp: UpdateMLP) -> bool:
    """Whether there is a kernel for an MLP on its device. The meta device has all."""
    linears = mlp.linears
    first = linears[0]
    like = first.weight
    if like.dtype == torch.float64 or not (like.is_meta or has_triton(like.device)):
        return False
    width = first.out_features
    has_widths = [layer.out_features for layer in linears] == [width, width, 2]
    d_context = first.in_features - NUM_FEATURES
    return has_widths and width in WIDTHS and d_context <= MAX_CONTEXT


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
