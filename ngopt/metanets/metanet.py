"""Base class of metanets: modules that map features on a neural graph to updates."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.graph_data.feature_sources import FeatureSource, FlatFeatures
from ngopt.metanets.graph_data.graph_tensors import GraphTensors
from ngopt.metanets.update_mlp import UpdateMLP


class Metanet(nn.Module, ABC):
    """Base class. A subclass has a `name`, a frozen dataclass `Config`, and `updates`.

    One that reads the graph also has `d_context`, `graph_tensors` and `context`: the
    context of every parameter is computed from the graph first, and the updates then
    from it and the parameters' own features.

    Args:
        config: An instance of `Config` with at least `nominal_step`, the step size in
            whose units the optimizer's weight decay is given. Raises ValueError without
            it.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    config: Any
    graph_every: int = 1
    """Steps of an optimizer between two computations of the context."""
    d_context: int = 0
    """Context features of each parameter; 0 if the graph is not read."""

    def __init__(self, config: Any):
        super().__init__()
        if not hasattr(config, "nominal_step"):
            raise ValueError(
                f"{type(self).__name__}: expected a config with nominal_step, the step "
                f"size in whose units weight decay is given; got {config!r}. Add "
                "'nominal_step: float = 1e-3' to its Config."
            )
        self.config = config

    def check(self, graph: NeuralGraph) -> None:
        """Raises ValueError for a graph that the metanet cannot read."""

    def graph_tensors(
        self, graph: NeuralGraph, like: Tensor, limit: int | None = None
    ) -> GraphTensors | None:
        """What the metanet reads of a graph, see
        `ngopt.metanets.graph_data.graph_tensors`; None if it reads none."""
        return None

    def context(
        self,
        source: FeatureSource,
        tensors: GraphTensors,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The context of every parameter, `(*batch, numel, d)` each.

        Args:
            out: Where to write it, (numel, d) of any dtype.
        """
        raise NotImplementedError

    @abstractmethod
    def updates(self, features: Tensor, context: Tensor | None) -> Tensor:
        """Features `(*batch, n, 14)` of any elements, and their context `(*batch, n,
        d)` -> `(*batch, n)`."""

    def update_mlp(self) -> UpdateMLP | None:
        """The MLP whose outputs are `updates`, if one is; `Predictor` computes it
        faster without autograd."""
        return None

    def checked_updates(self, features: Tensor, context: Tensor | None) -> Tensor:
        """`updates`.

        Raises:
            ValueError: Unless there is one per element: (n, 1) would be viewed as the
                shape of the parameter.
        """
        if context is not None:
            context = context.to(features)
        values = self.updates(features, context)
        if values.shape != features.shape[:-1]:
            raise ValueError(
                f"{type(self).__name__}.updates: expected shape "
                f"{tuple(features.shape[:-1])}, one update for each row of features; "
                f"got {tuple(values.shape)}"
            )
        return values

    def forward(self, features: Tensor, graph: NeuralGraph) -> Tensor:
        """All features `(*batch, numel, 14)`, in the order of `NeuralGraph.flatten` ->
        `(*batch, numel)`."""
        tensors = self.graph_tensors(graph, features)
        if tensors is None:
            return self.updates(features, None)
        source = FlatFeatures.finite(features, graph)
        return self.updates(features, torch.cat(self.context(source, tensors), -2))

    def reconfigured(self, **changes: Any) -> Self:
        """A copy with the same weights and other values of some config fields."""
        copy = type(self)(replace(self.config, **changes))
        copy.load_state_dict(self.state_dict())
        return copy
