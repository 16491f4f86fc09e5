"""Base class of NFN and DWSNet: NP layers on chains of layers."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from harness.errors import prefixed_errors
from ngopt.metanets.layers.np_layer import NPLayer, Pool, pooled, summary
from tasks.baselines.chains import Chain, ChainValues
from tasks.models.base import ParameterModel
from tasks.models.mlp import pooled_head
from tasks.networks.architectures import NetworkStack


@dataclass(frozen=True)
class EquivariantConfig:
    """width: features of a parameter between NP layers. layers: their number.

    head, dropout: hidden widths and dropout of a reader's MLP.
    """

    width: int = 32
    layers: int = 3
    head: tuple[int, ...] = (256,)
    dropout: float = 0.0


class EquivariantModel(ParameterModel):
    """NP layers with ReLU. A reader pools and applies an MLP; the last layer of an
    editor returns the updates.

    permutes_ends: see `Chain`.
    pool: see `NPLayer`.

    Raises ValueError if the architecture is not a plain chain of layers.
    """

    Config = EquivariantConfig
    can_edit = True
    single_architecture = True
    permutes_ends: ClassVar[bool] = False
    pool: ClassVar[Pool] = "mean"

    def build(self, d_out: int, config: EquivariantConfig) -> None:
        super().build(d_out, config)
        with prefixed_errors(self.name):
            self.chain = Chain(self.first.graph, self.permutes_ends)
        between = self.chain.channels(config.width)
        last = self.chain.channels(d_out, of_slots=True) if self.edits else between
        first = self.chain.channels(1, of_slots=True)
        channels = [first, *[between] * (config.layers - 1), last]
        self.layers = nn.ModuleList(
            NPLayer(c_in, c_out, self.pool) for c_in, c_out in pairwise(channels)
        )
        if not self.edits:
            pooled_width = sum(last.weights) + sum(last.nodes) + last.whole
            self.head = pooled_head(pooled_width, config.head, d_out, config.dropout)

    def forward(self, stack: NetworkStack) -> Tensor:
        weights, nodes, whole = self._apply_layers(stack)
        pools = [pooled(weights, block, self.pool) for block in self.chain.order]
        return self.head(summary(pools, nodes, whole, self.pool))

    def updates(self, stack: NetworkStack) -> list[Tensor]:
        return self.chain.scatter(self._apply_layers(stack), self.d_out)

    def _apply_layers(self, stack: NetworkStack) -> ChainValues:
        weights, nodes, whole = self.chain.gather(self.standardised(stack))
        for k, layer in enumerate(self.layers):
            is_last = self.edits and k == len(self.layers) - 1
            nodes, whole = layer(weights, self.chain.order, nodes, whole, is_last)
        return ChainValues(weights, nodes, whole)
