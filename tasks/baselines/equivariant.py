"""What NFN and DWSNet share: NP layers on a chain of layers, a head of readers or of
editors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from ngopt.graph import NeuralGraph
from ngopt.metanets.layers.np_layer import NPLayer, Pool, pooled, summary
from tasks.baselines.chains import Chain, ChainValues
from tasks.models.base import ParameterModel
from tasks.models.perceptron import pooled_head
from tasks.networks.architectures import Architecture, Stack


@dataclass(frozen=True)
class EquivariantConfig:
    """width: features of a parameter between layers. layers: of them.

    head, dropout: hidden widths and dropout of the MLP of a reader.
    """

    width: int = 32
    layers: int = 3
    head: tuple[int, ...] = (256,)
    dropout: float = 0.0


class EquivariantModel(ParameterModel):
    """Base class: NP layers with ReLU, and an MLP of what is pooled, or a last layer of
    updates.

    Tied to one architecture. Raises ValueError if that is no plain chain of layers.

    chain_of_graph: what of a graph takes part in permutations. pool: see `NPLayer`.
    """

    can_edit = True
    is_tied = True
    chain_of_graph: ClassVar[Callable[[NeuralGraph], Chain]]
    pool: ClassVar[Pool] = "mean"

    def __init__(
        self,
        architectures: Sequence[Architecture],
        d_out: int,
        config: EquivariantConfig,
        edits: bool = False,
    ):
        super().__init__(architectures, edits)
        self.chain = self._chain()
        self.d_out = d_out
        between = self.chain.channels(config.width)
        last = self.chain.channels(d_out, of_slots=True) if edits else between
        first = self.chain.channels(1, of_slots=True)
        channels = [first, *[between] * (config.layers - 1), last]
        pairs = pairwise(channels)
        self.layers = nn.ModuleList(NPLayer(*pair, self.pool) for pair in pairs)
        if not edits:
            pooled_width = sum(last.weights) + sum(last.nodes) + last.whole
            self.head = pooled_head(pooled_width, config.head, d_out, config.dropout)

    def forward(self, stack: Stack) -> Tensor:
        weights, nodes, whole = self._after_layers(stack)
        pools = [pooled(weights, block, self.pool) for block in self.chain.order]
        return self.head(summary(pools, nodes, whole, self.pool))

    def updates(self, stack: Stack) -> list[Tensor]:
        return self.chain.write(self._after_layers(stack), self.d_out)

    def _after_layers(self, stack: Stack) -> ChainValues:
        weights, nodes, whole = self.chain.read(self.read(stack))
        for k, layer in enumerate(self.layers):
            is_last = self.edits and k == len(self.layers) - 1
            nodes, whole = layer(weights, self.chain.order, nodes, whole, is_last)
        return ChainValues(weights, nodes, whole)

    def _chain(self) -> Chain:
        try:
            return type(self).chain_of_graph(self.first.graph)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
