"""FF: a small MLP that maps every parameter's features to its update (Metz et al.
2019)."""

from dataclasses import dataclass

from torch import Tensor

from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.update_mlp import UpdateMLP


@dataclass(frozen=True)
class FeedForwardConfig:
    """hidden: widths of the MLP. output_scale and magnitude_scale: see `UpdateMLP`.

    Attributes:
        nominal_step: The step size in whose units the optimizer's weight decay is
            given.
    """

    hidden: tuple[int, ...] = (32, 32)
    output_scale: float = 0.01
    magnitude_scale: float = 0.001
    nominal_step: float = 1e-3


class FeedForward(Metanet):
    """The metanet "ff": reads the features of each parameter, not the graph.

    Shapes: features `(*batch, numel, 14)`, in the order of `NeuralGraph.flatten` ->
    `(*batch, numel)`.
    """

    name = "ff"
    config: FeedForwardConfig
    Config = FeedForwardConfig

    def __init__(self, config: FeedForwardConfig | None = None):
        super().__init__(config or self.Config())
        self.head = UpdateMLP(
            NUM_FEATURES,
            self.config.hidden,
            output_scale=self.config.output_scale,
            magnitude_scale=self.config.magnitude_scale,
            d_context=self.d_context,
        )

    def updates(self, features: Tensor, context: Tensor | None) -> Tensor:
        return self.head(features, context)

    def update_mlp(self) -> UpdateMLP | None:
        return self.head if type(self).updates is FeedForward.updates else None
