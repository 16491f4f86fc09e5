"""NFN: neural functional networks, NP and HNP (Zhou et al. 2023, sections 2.2 and 3).

Fourier features of parameters, and encodings of inputs and outputs, which are part of
the paper's experiments, are left out.
"""

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
class NFNConfig:
    """width: features of a parameter between NP layers. layers: their number.

    head, dropout: hidden widths and dropout of a reader's MLP.
    """

    width: int = 32
    layers: int = 3
    head: tuple[int, ...] = (256,)
    dropout: float = 0.0


class NFNHNP(ParameterModel):
    """The baseline "nfn-hnp", invariant to permutations of hidden neurons.

    NP layers with ReLU. A reader pools and applies an MLP; the last layer of an editor
    returns the updates.

    permutes_ends: see `Chain`.
    pool: see `NPLayer`.

    Raises ValueError if the architecture is not a plain chain of layers.
    """

    name = "nfn-hnp"
    Config = NFNConfig
    can_edit = True
    single_architecture = True
    permutes_ends: ClassVar[bool] = False
    pool: ClassVar[Pool] = "mean"

    def build(self, d_out: int, config: NFNConfig) -> None:
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
            self.head = pooled_head(last.total, config.head, d_out, config.dropout)

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


class NFNNP(NFNHNP):
    """The baseline "nfn-np", also invariant to permutations of inputs and outputs."""

    name = "nfn-np"
    permutes_ends = True
