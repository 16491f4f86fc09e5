"""What every metanet is: a module with a config that maps features on a neural graph to updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ngopt.graph.core import NeuralGraph


class Metanet(nn.Module):
    """Base class. A subclass has a `name`, a frozen dataclass `Config`, and `forward`.

    config: an instance of `Config` with at least `nominal_step`, the step size in whose units the
        optimizer's weight decay is given.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    config: Any

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, graph: NeuralGraph) -> Tensor:
        """features: (*batch, numel, 14), in the order of `NeuralGraph.flatten`. Returns updates (*batch, numel)."""
        raise NotImplementedError

    def reconfigured(self, **changes: Any) -> Self:
        """A copy with the same weights in which some fields of the config are changed."""
        copy = type(self)(replace(self.config, **changes))
        copy.load_state_dict(self.state_dict())
        return copy
