"""The MLP that maps features of a parameter to its update (Metz et al. 2019)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ngopt.devices import has_triton
from ngopt.metanets.features import NUM_FEATURES

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
