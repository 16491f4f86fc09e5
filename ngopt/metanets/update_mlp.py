"""The MLP that maps features of a parameter to its update (Metz et al. 2019), and
updates of a metanet without autograd, in memory that is reused."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, _foreach_copy_, nn  # pyright: ignore[reportPrivateImportUsage]

from ngopt import chunking
from ngopt.devices import has_triton
from ngopt.metanets.features import NUM_FEATURES, features_of

# Of an MLP with a kernel: widths of its two hidden layers, and features of the context.
WIDTHS, MAX_CONTEXT = (16, 32, 64), 16

Updates = Callable[[Tensor, Tensor | None], Tensor]
"""Features (n, 14) and context (n, d), None where d is 0, -> updates (n,)."""


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

    def predictor(self, capacity: int) -> "Predictor":
        """See `Metanet.predictor`."""
        linears = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        scales = self.output_scale, self.magnitude_scale
        if has_kernel(linears):
            return KernelPredictor(linears, scales)
        return MLPPredictor(linears, scales, capacity)


class Predictor:
    """A metanet's `updates` of up to `capacity` elements at once.

    updates: of the metanet. like: of its dtype, on its device.

    inputs: features, then context, then a row of ones, (14 + d + 1, capacity).
    """

    def __init__(self, updates: Updates, d_context: int, capacity: int, like: Tensor):
        self._updates = updates
        self.inputs = _ones(like, NUM_FEATURES + d_context + 1, capacity)

    def refresh(self) -> None:
        """Reads the metanet's weights again; call it where they may have changed."""

    @property
    def capacity(self) -> int:
        return self.inputs.shape[-1]

    def features(self, n: int) -> Tensor:
        """Memory for the features of n elements, (14, n)."""
        return self.inputs[:NUM_FEATURES, :n]

    def predicted(self, n: int, context: Tensor | None) -> Tensor:
        """Updates (n,) from `features` and a context, (n, d); overwritten by the next
        call."""
        inputs = self.inputs[:, :n]
        if context is not None:
            inputs[NUM_FEATURES:-1].copy_(context.mT)
        return self._computed(inputs)

    def of_columns(self, columns: Sequence[Tensor], context: Tensor | None) -> Tensor:
        """Updates (n,) of any number of elements.

        columns: weight, gradient and momenta, (n,) each. context: (n, d), if any.
        """
        n = len(columns[0])
        update = self.inputs.new_empty(n)
        tensors = [update, *columns]
        if context is not None:
            tensors.append(context)
        # pieces of equal length: a short one costs as many calls as a long one
        count = chunking.ceil_div(n, self.capacity)
        for out, *piece in chunking.pieces(tensors, count):
            own = None if context is None else piece.pop()
            features_of(piece, out, self.features(len(out)))
            out.copy_(self.predicted(len(out), own))
        return update

    def _computed(self, inputs: Tensor) -> Tensor:
        features = inputs[:NUM_FEATURES].mT
        context = inputs[NUM_FEATURES:-1].mT
        context = context if context.shape[-1] else None
        return checked_updates(self._updates, features, context)


class MLPPredictor(Predictor):
    """Predictor of an `UpdateMLP`: linear layers with ReLU; the last outputs d and m.

    The update is scales[0] * d * exp(scales[1] * m). Biases multiply rows of ones: a
    layer is one product, and one pass for its ReLU.
    """

    def __init__(
        self, linears: Sequence[nn.Linear], scales: tuple[float, float], capacity: int
    ):
        like = linears[0].weight.detach()
        self._scales = like.new_tensor(scales).unsqueeze(-1)
        most = chunking.total_chunk_size(chunking.HIDDEN_ELEMENTS, like)
        self._limit = min(capacity, most)
        self.inputs = _ones(like, linears[0].in_features + 1, capacity)
        self._hidden = []
        for layer in linears[1:]:
            self._hidden.append(_ones(like, layer.in_features + 1, self._limit))
        self._out = _ones(like, 2, capacity)
        # weight and bias of a layer side by side
        self._weights: list[Tensor] = []
        self._originals: list[Tensor] = []
        self._copies: list[Tensor] = []
        for layer in linears:
            both = like.new_empty(layer.out_features, layer.in_features + 1)
            self._weights.append(both)
            self._originals += [layer.weight, layer.bias]
            self._copies += [both[:, :-1], both[:, -1]]
        self.refresh()

    def refresh(self) -> None:
        with torch.no_grad():
            _foreach_copy_(self._copies, self._originals)
        self._weights[-1].mul_(self._scales)

    def _computed(self, inputs: Tensor) -> Tensor:
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


class KernelPredictor(Predictor):
    """An `MLPPredictor` of two hidden layers as one kernel, from columns to updates.

    It has no `inputs`: features are never in memory.
    """

    def __init__(self, linears: Sequence[nn.Linear], scales: tuple[float, float]):
        self._weights: list[Tensor] = []
        for layer in linears:
            self._weights += [layer.weight.detach(), layer.bias.detach()]
        self._scales = list(scales)

    def of_columns(self, columns: Sequence[Tensor], context: Tensor | None) -> Tensor:
        """See `Predictor.of_columns`; float32."""
        return mlp_updates(list(columns), context, self._weights, self._scales)


@torch.library.custom_op("ngopt::mlp_updates", mutates_args=(), device_types="cuda")
def mlp_updates(
    columns: Sequence[Tensor],
    context: Tensor | None,
    weights: Sequence[Tensor],
    scales: Sequence[float],
) -> Tensor:
    """Updates (n,), float32, of elements with columns and context.

    weights: weight and bias of every layer. scales: see `MLPPredictor`.
    """
    from ngopt.metanets.mlp_kernel import launch  # needs Triton

    return launch(columns, context, weights, scales)


@mlp_updates.register_fake
def _(
    columns: Sequence[Tensor],
    context: Tensor | None,
    weights: Sequence[Tensor],
    scales: Sequence[float],
) -> Tensor:
    return torch.empty_like(columns[0], dtype=torch.float32)


def has_kernel(linears: Sequence[nn.Linear]) -> bool:
    """Whether there is a kernel for an MLP on its device. The meta device has all."""
    like = linears[0].weight
    width = linears[0].out_features
    d_context = linears[0].in_features - NUM_FEATURES
    widths = [layer.out_features for layer in linears]
    fits = widths == [width, width, 2] and width in WIDTHS
    fits = fits and d_context <= MAX_CONTEXT
    is_available = like.is_meta or has_triton(like.device)
    return fits and is_available and like.dtype != torch.float64


def checked_updates(
    updates: Updates, features: Tensor, context: Tensor | None
) -> Tensor:
    """The `updates` of a metanet. Raises ValueError unless there is one per element:
    (n, 1) would be viewed as the shape of the parameter."""
    values = updates(features, context)
    if values.shape != features.shape[:-1]:
        name = getattr(updates, "__qualname__", "updates")
        raise ValueError(
            f"{name}: expected shape {tuple(features.shape[:-1])}, one update for each "
            f"row of features; got {tuple(values.shape)}"
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
