"""Graph networks that read or edit networks: NG-GNN and NG-T (Kofinas et al. 2024), GMN (Lim et al. 2024).

Their layers are those of the learned optimizers; only what goes in and what comes out is another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ngopt.graph import NeuralGraph, parameter_graph
from ngopt.models.attention import RelationalLayer
from ngopt.models.edge_states import EdgeStates
from ngopt.models.graph_network import GraphNetwork
from ngopt.models.layers import GraphLayer, PNALayer
from ngopt.models.parts import GraphParts, parts_of
from ngopt.models.sources import WholeValues
from tasks.architectures import Architecture, Stack
from tasks.models.fourier import Fourier
from tasks.models.pooling import Pooling
from tasks.models.probes import Probes
from tasks.models.standardise import Standardise

KINDS = ("ng-gnn", "ng-t", "gmn")


@dataclass(frozen=True)
class GraphModelConfig:
    """Sizes of a graph network and of what is around it."""

    width: int = 32
    """Of nodes and edges."""
    layers: int = 3
    """Rounds of messages."""
    heads: int = 4
    """Of ng-t's attention, a divisor of the width."""
    probes: int = 0
    """Learned inputs; what networks say of them are features of their neurons."""
    frequencies: int = 8
    """Of the random Fourier features of values."""
    bandwidth: float = 0.5
    """Standard deviation of these frequencies, in periods for one deviation of the values."""
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


class GraphModel(nn.Module):
    """What reading and editing share: standardised values and answers to probes go through a graph network.

    kind: one of `KINDS`. example: an architecture, which says what probes look like. d_out: of every
    parameter, None where only nodes are read.

    Raises ValueError for another kind, or probes on a parameter graph, whose nodes are not all neurons.
    """

    def __init__(
        self,
        kind: str,
        example: Architecture,
        standardise: Standardise,
        d_out: int | None,
        config: GraphModelConfig,
    ):
        super().__init__()
        if kind == "gmn" and config.probes:
            raise ValueError(f"gmn: probes: expected 0, as not all its nodes are neurons; got {config.probes}")
        self.kind, self.standardise = kind, standardise
        self.fourier = Fourier(config.frequencies, config.bandwidth)
        self.network = GraphNetwork(
            self.fourier.size,
            d_out,
            config.width,
            [_layer(kind, config) for _ in range(config.layers)],
            config.kernel,
            activations=config.activations,
            global_feature=kind == "gmn",
            positions=config.positions,
        )
        self.probes = None
        if config.probes:
            self.probes = Probes(example.module.probes(config.probes), config.width)
        self._parts: dict[int, GraphParts] = {}

    def parts(self, architecture: Architecture) -> GraphParts:
        """The graph of an architecture, as the kind of model sees it."""
        key = id(architecture)  # there is one object for each, as long as the process lives
        if key not in self._parts:
            like = self.network.position.weight
            graph = _graph_of(self.kind, architecture.graph)
            self._parts[key] = parts_of(graph, self.network.kernel, like)
        return self._parts[key]

    def states(self, stack: Stack) -> tuple[list[Tensor], EdgeStates]:
        """Of all nodes, (b, n, width) a group, and of the edges."""
        parts = self.parts(stack.architecture)
        features = [self.fourier(values) for values in self.standardise(stack)]
        source = WholeValues(parts.graph.gather(features, batch_dims=1), torch.Size([stack.count]))
        extra = self.probes(stack) if self.probes else ()
        return self.network.states(source, parts, extra)


class GraphReader(GraphModel):
    """A network's graph to a vector.

    Shapes: a stack of b networks -> (b, d_out).
    """

    def __init__(
        self,
        kind: str,
        example: Architecture,
        standardise: Standardise,
        d_out: int,
        config: GraphModelConfig,
    ):
        super().__init__(kind, example, standardise, None, config)
        self.pooling = Pooling(config.width, config.queries)
        hidden, dropout = config.hidden, config.dropout
        self.head = nn.Sequential(
            nn.LayerNorm(self.pooling.size),
            nn.Linear(self.pooling.size, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, d_out),
        )

    def forward(self, stack: Stack) -> Tensor:
        states, _ = self.states(stack)
        return self.head(self.pooling(states, self.parts(stack.architecture).graph))


def _layer(kind: str, config: GraphModelConfig) -> GraphLayer:
    if kind == "ng-t":
        return RelationalLayer(config.width, config.heads)
    if kind in KINDS:
        return PNALayer(config.width, config.log_degree)
    raise ValueError(f"model: expected one of {', '.join(KINDS)}; got '{kind}'")


def _graph_of(kind: str, graph: NeuralGraph) -> NeuralGraph:
    return parameter_graph(graph) if kind == "gmn" else graph
