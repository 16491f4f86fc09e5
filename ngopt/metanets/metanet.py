"""What every metanet is: a module with a config that maps features on a neural graph to
updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ngopt.graph.core import NeuralGraph
from ngopt.metanets.graph_data.feature_sources import FeatureSource, FlatFeatures
from ngopt.metanets.graph_data.graph_tensors import GraphTensors
from ngopt.metanets.update_mlp.predictor import Predictor


class Metanet(nn.Module):
    """Base class. A subclass has a `name`, a frozen dataclass `Config`, and `updates`.

    One that sees the graph also has `parts` and `context`: what the graph says of every
    parameter is found first, part by part, and the updates then from it and the
    parameters' own features.

    config: an instance of `Config` with at least `nominal_step`, the step size in whose
    units the
        optimizer's weight decay is given.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    config: Any

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    @property
    def graph_every(self) -> int:
        """Steps of an optimizer between two looks at the graph."""
        return 1

    @property
    def d_context(self) -> int:
        """Features that the graph gives each parameter."""
        return 0

    def check(self, graph: NeuralGraph) -> None:
        """Raises ValueError for a graph that the metanet cannot read; most read all."""

    def parts(
        self, graph: NeuralGraph, like: Tensor, limit: int | None = None
    ) -> GraphTensors | None:
        """What the metanet derives from a graph; None if it does not see it. See
        `graph_tensors`."""
        return None

    def context(
        self,
        source: FeatureSource,
        parts: GraphTensors,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """What the graph says of every parameter, (*batch, numel, d) each.

        out: where to put it, (numel, d) of any dtype.
        """
        raise NotImplementedError

    def updates(self, features: Tensor, context: Tensor | None) -> Tensor:
        """Features (*batch, n, 14) of any elements, and their context (*batch, n, d)
        -> (*batch, n)."""
        raise NotImplementedError

    def predictor(self, room: int) -> Predictor:
        """What computes `updates` of up to so many elements without autograd."""
        like = next(self.parameters()).detach()
        return Predictor(self.updates, self.d_context, room, like)

    def forward(self, features: Tensor, graph: NeuralGraph) -> Tensor:
        """All features (*batch, numel, 14), in the order of `NeuralGraph.flatten` ->
        (*batch, numel)."""
        parts = self.parts(graph, features)
        if parts is None:
            return self.updates(features, None)
        source = FlatFeatures.finite(features, graph)
        return self.updates(features, torch.cat(self.context(source, parts), -2))

    def reconfigured(self, **changes: Any) -> Self:
        """A copy with the same weights in which some fields of the config are changed."""
        copy = type(self)(replace(self.config, **changes))
        copy.load_state_dict(self.state_dict())
        return copy
