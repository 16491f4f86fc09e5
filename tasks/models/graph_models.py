"""Graph networks that read or edit networks: NG-GNN and NG-T (Kofinas et al. 2024),
GMN (Lim et al. 2024).

Their layers are those of the learned optimizers; only what goes in and what comes out is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ngopt.graph import NeuralGraph, parameter_graph
from ngopt.models.attention import RelationalLayer
from ngopt.models.graph_network import GraphNetwork
from ngopt.models.layers import GraphLayer, PNALayer
from ngopt.models.parts import GraphParts, parts_of
from ngopt.models.sources import WholeValues
from tasks.models.base import ParameterModel
from tasks.models.fourier import Fourier
from tasks.models.learned_inputs import FreeInputs, GeneratedInputs
from tasks.models.perceptron import perceptron
from tasks.models.pooling import Pooling, common_outputs
from tasks.models.probes import Probes
from tasks.networks.architectures import Architecture, Stack

# Of a tensor in a network, beside its deviation over all networks.
LEAST = 1e-4


@dataclass(frozen=True)
class GraphModelConfig:
    """Sizes of a graph network and of what is around it."""

    width: int = 32
    """Of nodes and edges."""
    layers: int = 3
    """Rounds of messages."""
    heads: int = 4
    """Of ng-t's attention, a divisor of the width."""
    complete_up_to: int = 128
    """In networks of so many neurons all attend to all."""
    probes: int = 0
    """Learned inputs; what networks say of them are features of their neurons."""
    frequencies: int = 8
    """Of the random Fourier features of values."""
    bandwidth: float = 0.5
    """Standard deviation of these frequencies, in periods for one deviation of the values."""
    scales: bool = False
    """Whether values are in units of their own tensor's size in their network, and its logarithm a
    feature: for zoos, whose networks differ by orders of magnitude, those of ReLUs in canonical
    form above all. Where they do not, as INRs, values alone are learned from faster."""
    activations: bool = True
    """Whether neurons know their activation function."""
    positions: bool = True
    """Whether neurons know their layer, and inputs and outputs their place."""
    kernel: tuple[int, int] = (3, 3)
    """Largest (height, width) of a kernel on one edge."""
    log_degree: float = 3.0
    """The constant of the amplification scaler (Corso et al. 2020, Eq. 5)."""
    queries: int = 4
    """Of the pooling."""
    hidden: int = 128
    """Width of the head that reads a pooled network."""
    dropout: float = 0.2
    """Of that head."""


class GraphModel(ParameterModel):
    """Standardised values, and what networks say of probes, through rounds of messages.

    A subclass has a `name` and says how one `layer` is made.

    Shapes: a reader gives (b, d_out) of b networks, an editor (b, d_out, *shape)
    of every parameter.
    """

    can_edit = True
    has_global = False

    def __init__(
        self,
        architectures: Sequence[Architecture],
        d_out: int,
        config: GraphModelConfig,
        edits: bool = False,
    ):
        super().__init__(architectures, edits)
        self.architectures = architectures
        last = (
            config.layers - 1
        )  # where only nodes are read, it needs no new edges
        self.fourier = Fourier(config.frequencies, config.bandwidth)
        self.scales = config.scales
        self.network = GraphNetwork(
            self.fourier.size + config.scales,
            d_out if edits else None,
            config.width,
            [
                self.layer(config, edges=edits or k < last)
                for k in range(config.layers)
            ],
            config.kernel,
            activations=config.activations,
            global_feature=self.has_global,
            positions=config.positions,
        )
        self.probes = self._probes(config)
        self._parts: dict[int, GraphParts] = {}
        if not edits:
            outputs = common_outputs(one.graph for one in architectures)
            self.pooling = Pooling(config.width, config.queries, outputs)
            hidden = (config.hidden, config.hidden)
            head = perceptron(
                self.pooling.size, hidden, d_out, config.dropout, nn.SiLU
            )
            self.head = nn.Sequential(nn.LayerNorm(self.pooling.size), head)

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        """A round of messages. edges: whether edges change, too."""
        raise NotImplementedError

    def graph(self, architecture: Architecture) -> NeuralGraph:
        """What the model sees of an architecture."""
        return architecture.graph

    def fit(self, stacks: Iterable[Stack]) -> None:
        super().fit(stacks)
        for architecture in self.architectures:
            self.parts(
                architecture
            )  # made later, they would have steps compiled again

    def forward(self, stack: Stack) -> Tensor:
        states, _ = self.network.states(
            self._source(stack),
            self.parts(stack.architecture),
            self._extra(stack),
        )
        return self.head(
            self.pooling(states, self.parts(stack.architecture).graph)
        )

    def updates(self, stack: Stack) -> list[Tensor]:
        parts = self.parts(stack.architecture)
        found = self.network.decoded(
            self._source(stack), parts, self._extra(stack)
        )
        values = parts.graph.scatter(found, batch_dims=1)  # (b, *shape, d_out)
        return [value.movedim(-1, 1) for value in values]

    def parts(self, architecture: Architecture) -> GraphParts:
        # there is one object for each, as long as the process lives
        key = id(architecture)
        if key not in self._parts:
            like = self.network.position.weight
            self._parts[key] = parts_of(
                self.graph(architecture), self.network.kernel, like
            )
        return self._parts[key]

    def _source(self, stack: Stack) -> WholeValues:
        graph = self.parts(stack.architecture).graph
        features = [self._features(values) for values in self.read(stack)]
        return WholeValues(
            graph.gather(features, batch_dims=1), torch.Size([stack.count])
        )

    def _features(self, values: Tensor) -> Tensor:
        """Of a parameter of b networks, (b, *shape) -> (b, *shape, features)."""
        if not self.scales:
            return self.fourier(values)
        relative, logarithms = in_own_units(values)
        return torch.cat([self.fourier(relative), logarithms.unsqueeze(-1)], -1)

    def _extra(self, stack: Stack) -> Sequence[Tensor | None]:
        return self.probes(stack) if self.probes else ()

    def _probes(self, config: GraphModelConfig) -> Probes | None:
        if not config.probes:
            return None
        shape = self.first.module.example().shape[1:]
        # free pixels learn what the training's networks alone have
        kind = GeneratedInputs if len(shape) == 3 else FreeInputs
        return Probes(kind(config.probes, shape), config.probes, config.width)


def in_own_units(values: Tensor) -> tuple[Tensor, Tensor]:
    """A parameter of b networks in units of its size in each, and the logarithms of these sizes.

    Shapes: (b, *shape) all.
    """
    means = values.square().flatten(1).mean(1)
    sizes = means.sqrt().clamp_min(LEAST).view(-1, *[1] * (values.dim() - 1))
    return values / sizes, sizes.log().expand_as(values)


class NeuralGraphGNN(GraphModel):
    """The model "ng-gnn" (Kofinas et al. 2024, section 3, Eq. 3 and 4)."""

    name = "ng-gnn"

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        return PNALayer(config.width, config.log_degree, edges)


class NeuralGraphTransformer(GraphModel):
    """The model "ng-t" (Kofinas et al. 2024, Eq. 5)."""

    name = "ng-t"

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        return RelationalLayer(
            config.width, config.heads, config.complete_up_to, edges
        )


class GraphMetanetwork(GraphModel):
    """The model "gmn": on the parameter graph, with a feature of the whole graph (Lim et al. 2024).

    Raises ValueError for probes: not all its nodes are neurons.
    """

    name = "gmn"
    has_global = True

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        return PNALayer(config.width, config.log_degree, edges)

    def graph(self, architecture: Architecture) -> NeuralGraph:
        return parameter_graph(architecture.graph)

    def _probes(self, config: GraphModelConfig) -> None:
        if config.probes:
            raise ValueError(
                f"gmn: probes: expected 0, as not all its nodes are neurons; got {config.probes}"
            )
