"""Graph networks that read or edit networks: NG-GNN and NG-T (Kofinas et al. 2024),
GMN (Lim et al. 2024).

Their layers are those of the learned optimizers; only what goes in and what comes out
is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ngopt.chunking import even_slices
from ngopt.graph import NeuralGraph, parameter_graph
from ngopt.graph.core import Index
from ngopt.graph.views.parameter_graph import neuron_places
from ngopt.metanets.graph_data.feature_sources import WholeValues
from ngopt.metanets.graph_data.graph_tensors import (
    GraphTensors,
    graph_tensors,
)
from ngopt.metanets.graph_data.mixture import (
    MixedValues,
    NetworkLayout,
    layout_of,
    mixture_of,
)
from ngopt.metanets.layers.attention import RelationalLayer
from ngopt.metanets.layers.graph_layer import GraphLayer
from ngopt.metanets.layers.graph_network import GraphNetwork, GraphNetworkOptions
from ngopt.metanets.layers.pna import PNALayer
from tasks.models.base import ParameterModel
from tasks.models.fourier import Fourier
from tasks.models.learned_inputs import FreeInputs, GeneratedInputs
from tasks.models.perceptron import perceptron
from tasks.models.pooling import Pooling, common_outputs
from tasks.models.probes import Probes, Said
from tasks.networks.architectures import Architecture, Stack

# Of a tensor in a network, beside its deviation over all networks.
LEAST = 1e-4
# Kernels on one edge: larger ones are cut into tiles, smaller ones lie in the centre.
SMALLEST_KERNEL, LARGEST_KERNEL = 3, 7
# Edges of different networks that are read in one call, so that they stay in the
# caches.
AT_ONCE = 1 << 16
# Edges that a compiled step reads in one call. What it takes to start a step is less
# than what is lost to memory with more than these, 16 SIRENs [2, 32, 32, 1].
COMPILED_AT_ONCE = 18 << 10
# Of the head that reads answers, ProbeGen's.
ANSWER_WIDTH = 256


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
    """Standard deviation of these frequencies, in periods for one deviation of the
    values."""
    scales: bool = False
    """Whether values are in units of their own tensor's size in their network, and its
    logarithm a
    feature: for zoos, whose networks differ by orders of magnitude, those of ReLUs in
    canonical form above all. Where they do not, as INRs, values alone are learned from
    faster."""
    activations: bool = True
    """Whether neurons know their activation function."""
    positions: bool = True
    """Whether neurons know their layer, and inputs and outputs their place."""
    log_degree: float = 3.0
    """The constant of the amplification scaler (Corso et al. 2020, Eq. 5)."""
    queries: int = 4
    """Of the pooling."""
    hidden: int = 128
    """Width of the head that reads a pooled network."""
    dropout: float = 0.2
    """Of that head."""
    answer_layers: int = 0
    """Hidden layers of a second head, whose result is added: it reads what the outputs
    answer to all probes, as ProbeGen does (Kahana et al. 2024). None: there is no such
    head."""
    answers_first: float = 0.0
    """Share of the training in which that head learns alone, in steps that take a
    fraction of the time; what the graph says is added from then on, and begins at 0."""


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
        # where only nodes are read, the last needs no new edges
        last = config.layers - 1
        self.fourier = Fourier(config.frequencies, config.bandwidth)
        self.scales = config.scales
        self.answers_first = config.answers_first
        self._learns_answers = False
        self.network = GraphNetwork(
            self.fourier.size + config.scales,
            d_out if edits else None,
            config.width,
            [self.layer(config, edges=edits or k < last) for k in range(config.layers)],
            largest_kernel(self.graph(one) for one in architectures),
            GraphNetworkOptions(
                activations=config.activations,
                global_feature=self.has_global,
                positions=config.positions,
                slot_positions=self.has_global,
            ),
        )
        self.probes = self._probes(config)
        self._parts: dict[int, GraphTensors] = {}
        self._layouts: dict[int, NetworkLayout] = {}
        if not edits:
            outputs = common_outputs(one.graph for one in architectures)
            self.pooling = Pooling(config.width, config.queries, outputs)
            hidden = (config.hidden, config.hidden)
            head = perceptron(self.pooling.size, hidden, d_out, config.dropout, nn.SiLU)
            self.head = nn.Sequential(nn.LayerNorm(self.pooling.size), head)
            self.answer_head = answer_head(config, outputs, d_out)
            if config.answers_first:
                for parameter in head[-1].parameters():
                    nn.init.zeros_(parameter)

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        """A round of messages. edges: whether edges change, too."""
        raise NotImplementedError

    def graph(self, architecture: Architecture) -> NeuralGraph:
        """What the model sees of an architecture."""
        return architecture.graph

    def fit(self, stacks: Iterable[Stack]) -> None:
        super().fit(stacks)
        for architecture in self.architectures:
            # made later, they would have steps compiled again
            self.parts(architecture)

    @property
    def _answers_alone(self) -> bool:
        """Whether this is a step in which the second head learns alone."""
        return self.training and self._learns_answers

    def begin(self, share: float) -> int:
        self._learns_answers = share < self.answers_first
        return int(self._learns_answers)

    def pieces(self, stack: Stack) -> list[Stack]:
        if self._answers_alone:
            return [stack]
        return list(self._alike(stack, COMPILED_AT_ONCE))

    def forward(self, stack: Stack) -> Tensor:
        if self._answers_alone:
            return self._answered([stack])
        said = self._said(stack)
        states, _ = self.network.states(
            self._source(stack), self.parts(stack.architecture), said.codes
        )
        pooled = self.pooling(states, self.graph(stack.architecture))
        return self._judged(pooled, said.answers)

    def forward_mixed(self, stacks: Sequence[Stack]) -> Tensor:
        if len(stacks) == 1:
            return self.forward(stacks[0])
        if self._answers_alone:
            return self._answered(stacks)
        pieces = self._pieces(stacks)
        return torch.cat([self._mixed(piece) for piece in pieces])

    def _pieces(self, stacks: Sequence[Stack]) -> Iterator[list[Stack]]:
        """The same networks, so many at a time that they have up to `AT_ONCE` edges."""
        piece: list[Stack] = []
        room = AT_ONCE
        for stack in stacks:
            for alike in self._alike(stack, AT_ONCE):
                need = alike.count * self.parts(stack.architecture).edges
                if piece and need > room:
                    yield piece
                    piece, room = [], AT_ONCE
                piece.append(alike)
                room -= need
        yield piece

    def _alike(self, stack: Stack, room: int) -> Iterator[Stack]:
        """A stack in pieces of up to so many edges, or of one network."""
        edges = max(1, self.parts(stack.architecture).edges)
        for some in even_slices(stack.count, max(1, room // edges)):
            yield stack.select(some)

    def _mixed(self, stacks: Sequence[Stack]) -> Tensor:
        layouts = [(self.layout(stack.architecture), stack.count) for stack in stacks]
        mixture = mixture_of(layouts, self.network.kernel)
        values = torch.cat([self._flat(stack) for stack in stacks])
        said = [self._said(stack) for stack in stacks]
        (states,), _ = self.network.states(
            MixedValues(values, mixture, self._features),
            mixture.tensors,
            self._mixed_codes(stacks, said),
        )
        sizes = [count * layout.nodes for layout, count in layouts]
        pooled = [
            self._pooled(stack, own)
            for stack, own in zip(stacks, states.split(sizes), strict=True)
        ]
        answers = torch.cat([one.answers for one in said])
        return self._judged(torch.cat(pooled), answers)

    def _answered(self, stacks: Sequence[Stack]) -> Tensor:
        """What the second head says alone."""
        assert self.probes is not None and self.answer_head is not None
        answers = torch.cat([self.probes.answers(stack) for stack in stacks])
        return self.answer_head(answers.flatten(1))

    def _judged(self, pooled: Tensor, answers: Tensor) -> Tensor:
        found = self.head(pooled)
        if self.answer_head is None:
            return found
        return found + self.answer_head(answers.flatten(1))

    def _flat(self, stack: Stack) -> Tensor:
        """Of all parameters of all networks, (b * numel, 1 or 2)."""
        values = [value.flatten(1, -2) for value in self._values(stack)]
        return torch.cat(values, 1).flatten(0, 1)

    def _mixed_codes(
        self, stacks: Sequence[Stack], said: Sequence[Said]
    ) -> list[Tensor | None]:
        if not self.probes:
            return []
        found, like = [], self.network.position.weight
        for stack, one in zip(stacks, said, strict=True):
            groups = self.graph(stack.architecture).groups
            none = like.new_zeros(stack.count, 1, self.network.width)
            codes = [
                none.expand(-1, group.size, -1) if own is None else own
                for own, group in zip(one.codes, groups, strict=True)
            ]
            found.append(torch.cat(codes, 1).flatten(0, 1))
        return [torch.cat(found)]

    def _pooled(self, stack: Stack, states: Tensor) -> Tensor:
        """states: of all nodes of a stack's networks, (b * n, width)."""
        graph = self.graph(stack.architecture)
        sizes = [group.size for group in graph.groups]
        nodes = states.unflatten(0, (stack.count, -1))
        return self.pooling(nodes.split(sizes, 1), graph)

    def updates(self, stack: Stack) -> list[Tensor]:
        parts = self.parts(stack.architecture)
        found = self.network.decoded(
            self._source(stack), parts, self._said(stack).codes
        )
        values = parts.graph.scatter(found, batch_dims=1)  # (b, *shape, d_out)
        return [value.movedim(-1, 1) for value in values]

    def parts(self, architecture: Architecture) -> GraphTensors:
        # there is one object for each, as long as the process lives
        key = id(architecture)
        if key not in self._parts:
            like = self.network.position.weight
            self._parts[key] = graph_tensors(
                self.graph(architecture), self.network.kernel, like
            )
        return self._parts[key]

    def layout(self, architecture: Architecture) -> NetworkLayout:
        key = id(architecture)
        if key not in self._layouts:
            like = self.network.position.weight
            self._layouts[key] = layout_of(self.graph(architecture), like)
        return self._layouts[key]

    def _source(self, stack: Stack) -> WholeValues:
        graph = self.graph(stack.architecture)
        features = [self._features(values) for values in self._values(stack)]
        return WholeValues(
            graph.gather(features, batch_dims=1), torch.Size([stack.count])
        )

    def _values(self, stack: Stack) -> list[Tensor]:
        """Of every parameter of b networks what features are made of, (b, *shape, 1 or
        2)."""
        values = self.read(stack)
        if not self.scales:
            return [value.unsqueeze(-1) for value in values]
        return [torch.stack(in_own_units(value), -1) for value in values]

    def _features(self, values: Tensor) -> Tensor:
        """(*, 1 or 2) -> (*, features): those of values, and logarithms of sizes as
        they are."""
        found = self.fourier(values[..., 0])
        return torch.cat([found, values[..., 1:]], -1) if self.scales else found

    def _said(self, stack: Stack) -> Said:
        if self.probes:
            return self.probes(stack)
        return Said((), stack.params[0].new_empty(stack.count, 0))

    def _probes(self, config: GraphModelConfig) -> Probes | None:
        if not config.probes:
            return None
        shape = self.first.module.example().shape[1:]
        # free pixels learn what the training's networks alone have
        kind = GeneratedInputs if len(shape) == 3 else FreeInputs
        return Probes(kind(config.probes, shape), config.probes, config.width)


def answer_head(
    config: GraphModelConfig, outputs: int | None, d_out: int
) -> nn.Module | None:
    """What reads the answers of so many outputs to all probes, (b, 2 m outputs) -> (b,
    d_out).

    outputs: None where networks differ in them.

    Raises ValueError without probes, or where networks differ, and for a share of the
    training without such a head or that leaves nothing of it to the graph.
    """
    if not 0 <= config.answers_first < 1:
        told = "expected a share of 0 or more, below 1"
        raise ValueError(f"answers_first: {told}; got {config.answers_first}")
    if not config.answer_layers:
        if config.answers_first:
            raise ValueError("answers_first: expected answer_layers; got none")
        return None
    if not config.probes:
        raise ValueError("answer_layers: expected probes; got none")
    if outputs is None:
        raise ValueError(
            "answer_layers: expected networks of as many outputs each; got several numbers"
        )
    hidden = (ANSWER_WIDTH,) * config.answer_layers
    return perceptron(2 * config.probes * outputs, hidden, d_out)


def largest_kernel(graphs: Iterable[NeuralGraph]) -> tuple[int, int]:
    """The smallest (height, width) that the kernels of all graphs fit, within bounds."""
    sides = [
        side
        for graph in graphs
        for block in graph.weights
        if len(block.slot_shape) > 1
        for side in block.slot_shape[-2:]
    ]
    side = min(max([SMALLEST_KERNEL, *sides]), LARGEST_KERNEL)
    return side, side


def in_own_units(values: Tensor) -> tuple[Tensor, Tensor]:
    """A parameter of b networks in units of its size in each, and the logarithms of
    these sizes.

    Shapes: (b, *shape) all.
    """
    means = values.square().flatten(1).mean(1)
    sizes = means.sqrt().clamp_min(LEAST).view(-1, *[1] * (values.dim() - 1))
    return values / sizes, sizes.log().expand_as(values)


class GNNModel(GraphModel):
    """The model "ng-gnn" (Kofinas et al. 2024, section 3, Eq. 3 and 4)."""

    name = "ng-gnn"

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        return PNALayer(config.width, config.log_degree, edges)


class TransformerModel(GraphModel):
    """The model "ng-t" (Kofinas et al. 2024, Eq. 5)."""

    name = "ng-t"

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        return RelationalLayer(config.width, config.heads, config.complete_up_to, edges)


class GraphMetanetwork(GraphModel):
    """The model "gmn", on the parameter graph, with a feature of the whole graph (Lim
    et al. 2024)."""

    name = "gmn"
    has_global = True

    def layer(self, config: GraphModelConfig, edges: bool) -> GraphLayer:
        return PNALayer(config.width, config.log_degree, edges)

    def graph(self, architecture: Architecture) -> NeuralGraph:
        return parameter_graph_of(architecture)

    def _said(self, stack: Stack) -> Said:
        """Where a norm's two sides are one group, the sum of what both say."""
        said = super()._said(stack)
        if not said.codes:
            return said
        groups = self.graph(stack.architecture).groups
        found: list[Tensor | None] = [None] * len(groups)
        places = places_in(stack.architecture)
        for own, (group, index) in zip(said.codes, places, strict=True):
            if own is None:
                continue
            rows = spread(own, index, groups[group].size)
            before = found[group]
            found[group] = rows if before is None else before + rows
        return said._replace(codes=found)


@lru_cache(maxsize=4096)
def parameter_graph_of(architecture: Architecture) -> NeuralGraph:
    return parameter_graph(architecture.graph)


@lru_cache(maxsize=4096)
def places_in(architecture: Architecture) -> list[tuple[int, Index]]:
    """Where the neurons of every group are in the parameter graph, see `neuron_places`."""
    return neuron_places(architecture.graph)


def spread(rows: Tensor, index: Index, size: int) -> Tensor:
    """Rows (b, n, width) at the places that an index names, (b, size, width), 0
    elsewhere."""
    if index is None:
        return rows
    places = torch.tensor(index, device=rows.device)
    empty = rows.new_zeros(len(rows), size, rows.shape[-1])
    return empty.index_copy(1, places, rows)
