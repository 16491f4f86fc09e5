"""What the paper's graph-aware optimizers share: an FF that also sees what the graph
says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ngopt.graph.core import NeuralGraph
from ngopt.metanets.features import NUM_FEATURES
from ngopt.metanets.feedforward import FeedForward, FeedForwardConfig
from ngopt.metanets.graph_data.context_writer import ContextWriter, Place
from ngopt.metanets.graph_data.feature_sources import FeatureSource
from ngopt.metanets.graph_data.graph_tensors import GraphTensors, graph_tensors
from ngopt.metanets.metanet import Metanet
from ngopt.metanets.update_mlp.predictor import Predictor
from ngopt.metanets.update_mlp.update_mlp import UpdateMLP


@dataclass(frozen=True)
class GraphMetanetConfig(FeedForwardConfig):
    """d_out: features that the graph gives the FF for each parameter. kernel: largest
    (height, width) of a kernel on one edge. graph_every: steps of an optimizer between
    two looks at the graph. Others as in `FeedForwardConfig`.
    """

    d_out: int = 8
    kernel: tuple[int, int] = (3, 3)
    graph_every: int = 1


class GraphMetanet(Metanet):
    """Base class. The FF's input is a parameter's features and its context (Kofinas et
    al. 2024, section 4.3).

    A subclass has `pieces`: what the graph says of every place, a bias or a part of a
    weight.
    """

    config: GraphMetanetConfig

    def __init__(self, config: GraphMetanetConfig):
        super().__init__(config)
        scales = config.output_scale, config.magnitude_scale
        self.head = UpdateMLP(
            NUM_FEATURES, config.hidden, *scales, d_context=config.d_out
        )

    @classmethod
    def from_feedforward(cls, feedforward: FeedForward, **changes: Any) -> Self:
        """One that predicts what the FF predicts: its head ignores the context at
        first.

        changes: fields of the config, but `hidden`.
        """
        old = feedforward.config
        metanet = cls(cls.Config(**{**asdict(old), **changes, "hidden": old.hidden}))
        state = feedforward.head.state_dict()
        first = state["layers.0.weight"]  # (hidden, 14)
        nothing = first.new_zeros(len(first), metanet.config.d_out)
        state["layers.0.weight"] = torch.cat([first, nothing], dim=1)
        metanet.head.load_state_dict(state)
        return metanet

    @property
    def graph_every(self) -> int:
        return self.config.graph_every

    @property
    def d_context(self) -> int:
        return self.config.d_out

    def parts(
        self, graph: NeuralGraph, like: Tensor, limit: int | None = None
    ) -> GraphTensors:
        return graph_tensors(graph, self.config.kernel, like, limit)

    def pieces(
        self, source: FeatureSource, parts: GraphTensors
    ) -> Iterator[tuple[Place, Tensor]]:
        """BlockIndices and what is said of them, (*batch, *shape of the view, d_out) but for
        slots, which are one axis."""
        raise NotImplementedError

    def context(
        self,
        source: FeatureSource,
        parts: GraphTensors,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        found = ContextWriter(parts, source.batch, out)
        for place, values in self.pieces(source, parts):
            found.put(place, values)
        return found.all()

    def updates(self, features: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        return self.head(features, context)

    def predictor(self, room: int) -> Predictor:
        return self.head.predictor(room)
