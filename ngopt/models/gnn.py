"""NG-GNN: PNA with FiLM messages and edge updates on the blocks of a neural graph (Kofinas et al. 2024, section 3).

Departures from the paper's description: messages flow both ways along every edge, each way with its
own weights and aggregation, instead of transposed features on the edges; nodes and edges have
residual connections, and nodes a LayerNorm; positions are those of `encoders.node_positions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import log, prod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ngopt.features import NUM_FEATURES
from ngopt.graph.core import (
    BIAS_KINDS,
    EDGE_KINDS,
    NODE_KINDS,
    Bias,
    GraphValues,
    NeuralGraph,
    kind_code,
)
from ngopt.models.encoders import (
    ACTIVATIONS,
    POSITION_FEATURES,
    SlotDecoder,
    SlotEncoder,
    SlotMap,
)
from ngopt.models.feedforward import FeedForward, UpdateMLP
from ngopt.models.messages import Incoming, Messages, gathered, joined, side_by_side
from ngopt.models.metanet import Metanet
from ngopt.models.parts import BlockParts, GraphParts, Part, parts_of
from ngopt.models.sources import Source, WholeValues

# Inside the root of the standard deviation, so that its derivative is bounded where messages tie.
STD_EPSILON = 1e-5
AGGREGATORS = ("mean", "min", "max", "std")
SCALERS = ("identity", "amplification")


@dataclass(frozen=True)
class GNNConfig:
    """width: features of nodes, edges and messages. layers: of message passing.

    d_out: features that the GNN gives the FF for each parameter. kernel: largest (height, width) of
    a kernel on one edge. log_degree: mean of log(degree + 1) over the graphs of meta-training, the
    constant of the amplification scaler (Corso et al. 2020, Eq. 5). graph_every: steps of an
    optimizer between two looks at the graph. hidden, output_scale,
    magnitude_scale, nominal_step: as in `FeedForwardConfig`.
    """

    width: int = 32
    layers: int = 2
    d_out: int = 8
    kernel: tuple[int, int] = (3, 3)
    log_degree: float = 4.0
    graph_every: int = 1
    hidden: tuple[int, ...] = (32, 32)
    output_scale: float = 0.01
    magnitude_scale: float = 0.001
    nominal_step: float = 1e-3


class Ends(NamedTuple):
    """What the two ends of the edges of a block bring to a layer, 3 width each.

    For forward and backward messages and the edge update. target: (*batch, groups, n_target, 3 width).
    source: (*batch, groups, n_source, 3 width).
    """

    target: Tensor
    source: Tensor

    def sums(self, part: Part, columns: slice) -> Tensor:
        """Of both ends, (*batch, groups, n_target, n_source, 1, columns)."""
        target = self.target[..., part.groups, part.targets, columns]
        source = self.source[..., part.groups, part.sources, columns]
        return target[..., :, None, None, :] + source[..., None, :, None, :]


class PNALayer(nn.Module):
    """One round of messages between neighbouring groups.

    message (Eq. 4):   m = scale(e) * phi([v_target, v_source]) + shift(e), for each direction
    nodes:             v + silu(norm(linear([v, aggregates of both directions])))
    edges (Eq. 3):     e + linear(silu(linear([v_target, e, v_source])))

    Aggregates are mean, min, max and std of the messages, each with the scalers identity and
    amplification, log(degree + 1) / log_degree (Corso et al. 2020).

    Shapes: nodes one (*batch, n, width) a group; edges (*batch, groups, n_target, n_source, tiles,
    width), of a part of a block.
    """

    def __init__(self, width: int, log_degree: float):
        super().__init__()
        self.width, self.log_degree = width, log_degree
        self.film = nn.Linear(width, 4 * width)  # scale and shift, forward and backward
        self.target = nn.Linear(width, 3 * width)  # to both messages and the edge update
        self.source = nn.Linear(width, 3 * width, bias=False)
        self.update = nn.Linear((1 + 2 * len(AGGREGATORS) * len(SCALERS)) * width, width)
        self.norm = nn.LayerNorm(width)
        self.edge = nn.Linear(width, width)
        self.edge_out = nn.Linear(width, width)

    def ends(self, nodes: Sequence[Tensor], blocks: Sequence[BlockParts]) -> list[Ends]:
        """What the nodes bring to the edges of every block."""
        targets, sources = [self.target(v) for v in nodes], [self.source(v) for v in nodes]
        found = []
        for parts in blocks:
            g, t, s = parts.block.shape
            target = _selected(targets[parts.block.target], parts.target)
            source = _selected(sources[parts.block.source], parts.source)
            found.append(Ends(target.unflatten(-2, (g, t)), source.unflatten(-2, (g, s))))
        return found

    def messages(self, edges: Tensor, ends: Ends, part: Part) -> tuple[Messages, Messages]:
        """Messages of a part to its targets and to its sources."""
        film = self.film(edges).unflatten(-1, (2, 2, self.width))
        scale, shift = film.unbind(-2)
        sums = ends.sums(part, slice(0, 2 * self.width)).unflatten(-1, (2, self.width))
        there, back = torch.addcmul(shift, scale, sums).unbind(-2)
        return Messages.of(there, (-3, -2)), Messages.of(back, (-4, -2))

    def next_edges(self, edges: Tensor, ends: Ends, part: Part) -> Tensor:
        """The edges of a part after this layer."""
        sums = ends.sums(part, slice(2 * self.width, None))
        return edges + self.edge_out(silu(self.edge(edges) + sums))

    def next_nodes(
        self,
        nodes: Sequence[Tensor],
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Sequence[Incoming]],
    ) -> list[Tensor]:
        """The nodes after this layer, from what reaches each group from both sides."""
        found = []
        for node, there, back in zip(nodes, incoming, outgoing, strict=True):
            state = [node, self._aggregate(node, there), self._aggregate(node, back)]
            update = self.update(torch.cat(state, dim=-1))
            found.append(node + silu(self.norm(update)))
        return found

    def _aggregate(self, node: Tensor, parts: Sequence[Incoming]) -> Tensor:
        """All messages that reach a group -> (*batch, n, 8 width); zeros where there are none."""
        if not parts:
            columns = len(AGGREGATORS) * len(SCALERS) * self.width
            return node.new_zeros(*node.shape[:-1], columns)
        total = gathered(parts, node)
        std = (total.var + STD_EPSILON).sqrt()
        aggregates = torch.cat([total.mean, total.low, total.high, std], dim=-1)
        if isinstance(total.degree, Tensor):
            aggregates = aggregates * (total.degree > 0)
            amplification = (total.degree + 1).log() / self.log_degree
        else:
            amplification = log(total.degree + 1) / self.log_degree
        return torch.cat([aggregates, amplification * aggregates], dim=-1)


def _selected(nodes: Tensor, index: Tensor | None) -> Tensor:
    """(*batch, n, width) -> the rows that a block names."""
    return nodes if index is None else nodes.index_select(-2, index)


class GlobalFeature(nn.Module):
    """One vector for each whole graph, which all its nodes and edges see and feed (Lim et al. 2024, Eq. 3 to 5).

    u <- u + linear(silu(linear([u, mean of nodes, mean of edges]))); nodes and edges then get a linear
    map of it each. `graph.members` says what belongs to which graph.

    Shapes: u and the means (*batch, graphs, width).
    """

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(3 * width, width)
        self.outer = nn.Linear(width, width)
        self.to_nodes = nn.Linear(width, width, bias=False)
        self.to_edges = nn.Linear(width, width, bias=False)

    def forward(self, u: Tensor, nodes: Tensor, edges: Tensor) -> Tensor:
        return u + self.outer(silu(self.inner(torch.cat([u, nodes, edges], dim=-1))))


def _means(sums: Sequence[tuple[int, Tensor, int]], u: Tensor) -> Tensor:
    """Means by graph, (*batch, graphs, width), of (graph, sum, count); 0 where nothing is counted."""
    found = []
    for k in range(u.shape[-2]):
        own = [(total, count) for graph, total, count in sums if graph == k]
        count = max(1, sum(count for _, count in own))
        found.append(sum((total for total, _ in own), torch.zeros_like(u[..., k, :])) / count)
    return torch.stack(found, dim=-2)


class EdgeStates:
    """The states of all edges, part by part: those of a first state, after some steps.

    They are kept where `keep` says so, and else computed from the beginning whenever they are asked
    for, so that only those of one part are in memory.
    """

    def __init__(self, blocks: Sequence[BlockParts], first: EdgeStep, keep: bool):
        self.blocks, self.keep = blocks, keep
        self._steps: list[EdgeStep] = [first]
        self._kept: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def then(self, step: EdgeStep) -> None:
        """Adds a step."""
        self._steps.append(step)

    def of(self, parts: BlockParts, number: int) -> Tensor:
        """The states of one part after all steps so far."""
        key = parts.number, number
        done, state = self._kept.get(key, (0, None))
        for step in self._steps[done:]:
            state = step(state, parts, parts.parts[number])
        assert state is not None
        if self.keep:
            self._kept[key] = len(self._steps), state
        return state


Place = int | tuple[BlockParts, Part]
"""Where values belong: a bias, by its number, or a part of a weight."""

EdgeStep = Callable[[Tensor | None, BlockParts, Part], Tensor]
"""The states of a part after a step, from those before; None before the first."""


class GraphNetwork(nn.Module):
    """Features on a neural graph to features on the same graph, through rounds of `PNALayer`.

    What nodes and edges are, their kinds, is part of their features; edges without a parameter start
    from a learned vector for their kind alone. With `activations` nodes also get one for the function
    that the network applies to them, with `global_feature` every layer a vector for the whole graph.

    Shapes: `GraphValues` with d_in features -> `GraphValues` with d_out features.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        width: int,
        layers: int,
        kernel: tuple[int, int],
        log_degree: float,
        activations: bool = False,
        global_feature: bool = False,
    ):
        super().__init__()
        self.width, self.kernel = width, kernel
        self.activations = nn.Embedding(len(ACTIVATIONS), width) if activations else None
        self.globals = nn.ModuleList(GlobalFeature(width) for _ in range(layers)) if global_feature else None
        self.edge_encoder = SlotEncoder(d_in, width, kernel, EDGE_KINDS)
        self.node_encoder = SlotEncoder(d_in, width, kernel, BIAS_KINDS)
        self.node_kinds = nn.Embedding(len(NODE_KINDS), width)
        self.position = nn.Linear(POSITION_FEATURES, width)
        self.layers = nn.ModuleList(PNALayer(width, log_degree) for _ in range(layers))
        self.edge_decoder = SlotDecoder(width, d_out, kernel, EDGE_KINDS)
        self.node_decoder = SlotDecoder(width, d_out, kernel, BIAS_KINDS)

    def forward(self, values: GraphValues, graph: NeuralGraph) -> GraphValues:
        like = (*values.edges, *values.biases)[0] if graph.parameters else self.position.weight
        batch = like.shape[:-5] if values.edges else like.shape[:-3]
        parts = parts_of(graph, self.kernel, like)
        source = WholeValues(values, batch if graph.parameters else torch.Size())
        biases: list[Tensor] = [like] * len(graph.biases)
        edges: list[Tensor] = [like] * len(graph.weights)
        for place, found in self.pieces(source, parts):
            if isinstance(place, int):
                biases[place] = found
            else:
                edges[place[0].number] = found
        return GraphValues(tuple(biases), tuple(edges))

    def pieces(
        self,
        source: Source,
        parts: GraphParts,
    ) -> Iterator[tuple[Place, Tensor]]:
        """What `forward` returns, piece by piece.

        Of a bias, by its number, (*batch, n, slots, d_out); of a part of a weight (*batch, groups,
        n_target, n_source, slots, d_out). Where blocks are in several parts, states of edges are not
        kept but computed again, so that memory does not grow with them.
        """
        graph, maps = parts.graph, self._edge_maps(parts)
        nodes = self._encode_nodes(source, parts)
        first = partial(self._encode_edges, source, maps)
        edges = EdgeStates(parts.blocks, first, keep=parts.is_whole)
        count = 1 + max(graph.members, default=0)
        u = self.position.weight.new_zeros(*source.batch, count, self.width)
        for k, layer in enumerate(self.layers if parts.blocks else ()):
            if self.globals is not None:
                seer = cast(GlobalFeature, self.globals[k])
                u, nodes = self._with_globals(seer, u, nodes, edges, graph)
            nodes = self._round(cast(PNALayer, layer), nodes, edges)
        for number, bias in enumerate(graph.biases):
            yield number, self._decode_node(nodes[bias.group], bias, parts.bias_index[number])
        for block in parts.weights:
            decoder = self.edge_decoder.maps(block.block.slot_shape, block.block.kind)
            for i, part in enumerate(block.parts):
                yield (block, part), self.edge_decoder(edges.of(block, i), decoder)

    def _round(self, layer: PNALayer, nodes: list[Tensor], edges: EdgeStates) -> list[Tensor]:
        """The nodes after a layer; the layer becomes a step of the edges."""
        incoming: list[list[Incoming]] = [[] for _ in nodes]
        outgoing: list[list[Incoming]] = [[] for _ in nodes]
        ends = layer.ends(nodes, edges.blocks)
        for block, own in zip(edges.blocks, ends, strict=True):
            there: dict[tuple[int, int], Messages] = {}
            back: dict[tuple[int, int], Messages] = {}
            for i, part in enumerate(block.parts):
                found = layer.messages(edges.of(block, i), own, part)
                places = (part.groups.start, part.targets.start), (part.groups.start, part.sources.start)
                for kept, place, messages in zip((there, back), places, found, strict=True):
                    kept[place] = joined(kept[place], messages) if place in kept else messages
            target, source = block.block.target, block.block.source
            incoming[target].append(Incoming(side_by_side(list(there.values())), block.target))
            outgoing[source].append(Incoming(side_by_side(list(back.values())), block.source))

        def after(state: Tensor | None, block: BlockParts, part: Part) -> Tensor:
            return layer.next_edges(cast(Tensor, state), ends[block.number], part)

        edges.then(after)
        return layer.next_nodes(nodes, incoming, outgoing)

    def _with_globals(
        self,
        layer: GlobalFeature,
        u: Tensor,
        nodes: list[Tensor],
        edges: EdgeStates,
        graph: NeuralGraph,
    ) -> tuple[Tensor, list[Tensor]]:
        """The vectors of the graphs after a layer, and nodes that saw them; edges see them in a step."""
        members = graph.members or (0,) * len(graph.groups)
        of_nodes = [(m, v.sum(-2), v.shape[-2]) for v, m in zip(nodes, members, strict=True)]
        of_edges = []
        for block in edges.blocks:
            for i in range(len(block.parts)):
                flat = edges.of(block, i).flatten(-5, -2)
                of_edges.append((members[block.block.target], flat.sum(-2), flat.shape[-2]))
        u = layer(u, _means(of_nodes, u), _means(of_edges, u))
        to_nodes, to_edges = layer.to_nodes(u), layer.to_edges(u)

        def seen(state: Tensor | None, block: BlockParts, _: Part) -> Tensor:
            member = members[block.block.target]
            return cast(Tensor, state) + to_edges[..., member, None, None, None, None, :]

        edges.then(seen)
        return u, [v + to_nodes[..., m, None, :] for v, m in zip(nodes, members, strict=True)]

    def _encode_nodes(self, source: Source, parts: GraphParts) -> list[Tensor]:
        graph = parts.graph
        kinds = [self.node_kinds.weight[kind_code(g.kind, NODE_KINDS)] for g in graph.groups]
        nodes = [
            (self.position(p) + kind).expand(*source.batch, group.size, self.width)
            for p, kind, group in zip(parts.positions, kinds, graph.groups, strict=True)
        ]
        if self.activations is not None:
            codes = self.activations(parts.activations)
            nodes = [v + code for v, code in zip(nodes, codes, strict=True)]
        for number, (bias, index) in enumerate(zip(graph.biases, parts.bias_index, strict=True)):
            maps = self.node_encoder.maps(bias.slot_shape, bias.kind)
            code = self.node_encoder(source.bias(number), maps).sum(-2)
            node = nodes[bias.group]
            nodes[bias.group] = node + code if index is None else node.index_add(-2, index, code)
        return nodes

    def _edge_maps(self, parts: GraphParts) -> list[list[SlotMap]]:
        """How the edges of every weight are encoded."""
        blocks = [parts.block for parts in parts.weights]
        return [self.edge_encoder.maps(block.slot_shape, block.kind) for block in blocks]

    def _encode_edges(
        self,
        source: Source,
        maps: Sequence[Sequence[SlotMap]],
        _: Tensor | None,
        block: BlockParts,
        part: Part,
    ) -> Tensor:
        """First states of a part, (*batch, groups, n_target, n_source, tiles, width)."""
        if part.view is not None:
            return self.edge_encoder(source.edges(block, part), maps[block.number])
        _, kind = self.edge_encoder.film(block.block.kind)
        cuts = (part.groups, part.targets, part.sources)
        shape = [piece.stop - piece.start for piece in cuts]
        return kind.expand(*source.batch, *shape, 1, self.width)

    def _decode_node(self, node: Tensor, bias: Bias, index: Tensor | None) -> Tensor:
        state = _selected(node, index).unsqueeze(-2)
        maps = self.node_decoder.maps(bias.slot_shape, bias.kind)
        tiles = state.expand(*state.shape[:-2], len(maps), self.width)
        return self.node_decoder(tiles, maps)


class Scattered:
    """Puts what a graph network says of places where the parameters are.

    An element that has several places gets the mean.
    """

    def __init__(self, parts: GraphParts, batch: torch.Size):
        self.parts, self.batch = parts, batch
        self._found: list[Tensor | None] = [None] * len(parts.graph.parameters)  # (batch, numel, d)

    def put(self, place: Place, values: Tensor) -> None:
        graph = self.parts.graph
        view = graph.biases[place].view if isinstance(place, int) else place[1].view
        assert view is not None
        i, spec = view.parameter, graph.parameters[view.parameter]
        is_single, count = isinstance(self.parts.uses[i], int), prod(self.batch)
        if is_single and view.is_whole(spec):
            self._found[i] = values.reshape(count, spec.numel, -1)
            return
        values = values.reshape(count, *view.shape, -1)
        old = self._found[i]
        if old is None:
            old = values.new_zeros(count, spec.numel, values.shape[-1])
        view.write(old, values if is_single else view.read(old) + values)
        self._found[i] = old

    def means(self) -> list[Tensor]:
        """Of every parameter, (*batch, numel, d)."""
        found = []
        for values, uses in zip(self._found, self.parts.uses, strict=True):
            assert values is not None
            mean = values if isinstance(uses, int) else values / uses
            found.append(mean.reshape(*self.batch, *mean.shape[1:]))
        return found


class NeuralGraphGNN(Metanet):
    """The metanet "ng-gnn": features go through the GNN; the FF sees them and the GNN's output.

    Values that are not finite do not enter the messages: they stay with the parameter they belong to.

    Shapes: features (*batch, numel, 14), in the order of `NeuralGraph.flatten` -> (*batch, numel).
    """

    name = "ng-gnn"
    Config = GNNConfig

    def __init__(self, config: GNNConfig | None = None):
        config = config or GNNConfig()
        super().__init__(config)
        self.gnn = GraphNetwork(
            NUM_FEATURES, config.d_out, config.width, config.layers, config.kernel, config.log_degree
        )
        scales = config.output_scale, config.magnitude_scale
        self.head = UpdateMLP(NUM_FEATURES, config.hidden, *scales, d_context=config.d_out)

    @classmethod
    def from_feedforward(cls, feedforward: FeedForward) -> NeuralGraphGNN:
        """An NG-GNN that predicts what the FF predicts: its head ignores the GNN's output at first."""
        old = feedforward.config
        metanet = cls(
            GNNConfig(
                hidden=old.hidden,
                output_scale=old.output_scale,
                magnitude_scale=old.magnitude_scale,
                nominal_step=old.nominal_step,
            )
        )
        state = feedforward.head.state_dict()
        first = state["layers.0.weight"]  # (hidden, 14)
        state["layers.0.weight"] = torch.cat([first, first.new_zeros(len(first), metanet.config.d_out)], dim=1)
        metanet.head.load_state_dict(state)
        return metanet

    @property
    def graph_every(self) -> int:
        return self.config.graph_every

    @property
    def d_context(self) -> int:
        return self.config.d_out

    def parts(self, graph: NeuralGraph, like: Tensor, limit: int | None = None) -> GraphParts:
        return parts_of(graph, self.config.kernel, like, limit)

    def context(self, source: Source, parts: GraphParts) -> list[Tensor]:
        found = Scattered(parts, source.batch)
        for place, values in self.gnn.pieces(source, parts):
            found.put(place, values)
        return found.means()

    def updates(self, features: Tensor, context: Tensor | None) -> Tensor:
        assert context is not None
        return self.head(features, context)
