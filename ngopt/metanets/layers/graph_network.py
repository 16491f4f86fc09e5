"""Graph networks on neural graphs: features of all places to features of the same
places, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from ngopt.graph.core import (
    BIAS_KINDS,
    EDGE_KINDS,
    NODE_KINDS,
    Bias,
    GraphValues,
    NeuralGraph,
)
from ngopt.metanets.graph_data.context_writer import Place
from ngopt.metanets.graph_data.feature_sources import FeatureSource, WholeValues
from ngopt.metanets.graph_data.graph_tensors import (
    BlockTensors,
    EdgeChunk,
    GraphTensors,
    graph_tensors,
)
from ngopt.metanets.graph_data.node_features import (
    ACTIVATIONS,
    POSITION_FEATURES,
    SLOT_FEATURES,
)
from ngopt.metanets.layers.aggregation import Aggregate, batch_outside, by_neuron
from ngopt.metanets.layers.edge_states import EdgeStates, are_kept
from ngopt.metanets.layers.global_feature import GlobalFeature, sums_by_graph
from ngopt.metanets.layers.graph_layer import (
    EndTerms,
    GraphLayer,
    batch_inside,
    select_neurons,
)
from ngopt.metanets.layers.inbox import Arena, Inbox
from ngopt.metanets.layers.slot_encoders import SlotDecoder, SlotEncoder, SlotMap


class GraphNetwork(nn.Module):
    """Features on a neural graph to features on the same graph, through rounds of
    messages.

    What nodes and edges are, their kinds, is part of their features; edges without a
    parameter start from a learned vector for their kind alone. With `activations` nodes
    also get one for the function that the network applies to them, with
    `global_feature` every layer a vector for the whole graph, with `slot_positions`
    edges of a parameter graph one for their place in a kernel. Without `positions`
    nodes do not know where they are (see `encoders.node_positions`).

    d_out: None where only `states` is asked for. layers: the rounds. kernel: largest
    (height, width) of a kernel on one edge.

    Shapes: `GraphValues` with d_in features -> `GraphValues` with d_out features.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None,
        width: int,
        layers: Sequence[GraphLayer],
        kernel: tuple[int, int],
        activations: bool = False,
        global_feature: bool = False,
        positions: bool = True,
        slot_positions: bool = False,
    ):
        super().__init__()
        self.width, self.kernel, self.has_positions = width, kernel, positions
        self.slot_position = (
            nn.Linear(SLOT_FEATURES, width, bias=False) if slot_positions else None
        )
        self.activations = (
            nn.Embedding(len(ACTIVATIONS), width) if activations else None
        )
        self.globals = (
            nn.ModuleList(GlobalFeature(width) for _ in layers)
            if global_feature
            else None
        )
        self.edge_encoder = SlotEncoder(d_in, width, kernel, EDGE_KINDS)
        self.node_encoder = SlotEncoder(d_in, width, kernel, BIAS_KINDS)
        self.node_kinds = nn.Embedding(len(NODE_KINDS), width)
        self.position = nn.Linear(POSITION_FEATURES, width)
        self.layers = nn.ModuleList(layers)
        if d_out is not None:
            self.edge_decoder = SlotDecoder(width, d_out, kernel, EDGE_KINDS)
            self.node_decoder = SlotDecoder(width, d_out, kernel, BIAS_KINDS)

    def forward(self, values: GraphValues, graph: NeuralGraph) -> GraphValues:
        like = (
            (*values.edges, *values.biases)[0]
            if graph.parameters
            else self.position.weight
        )
        batch = like.shape[:-5] if values.edges else like.shape[:-3]
        return self.decoded(
            WholeValues(values, batch), graph_tensors(graph, self.kernel, like)
        )

    def decoded(
        self,
        source: FeatureSource,
        parts: GraphTensors,
        extra: Sequence[Tensor | None] = (),
    ) -> GraphValues:
        """What `pieces` gives, all together; parts are whole blocks."""
        like = self.position.weight
        biases: list[Tensor] = [like] * len(parts.graph.biases)
        edges: list[Tensor] = [like] * len(parts.graph.weights)
        for place, found in self.pieces(source, parts, extra):
            if isinstance(place, int):
                biases[place] = found
            else:
                edges[place[0].number] = found
        return GraphValues(tuple(biases), tuple(edges))

    def pieces(
        self,
        source: FeatureSource,
        parts: GraphTensors,
        extra: Sequence[Tensor | None] = (),
    ) -> Iterator[tuple[Place, Tensor]]:
        """What `forward` returns, piece by piece.

        Of a bias, by its number, (*batch, n, slots, d_out); of a part of a weight
        (*batch, groups, n_target, n_source, slots, d_out). Of large graphs states of
        edges are not kept but computed again, unless autograd keeps them anyway. extra:
        see `states`.
        """
        nodes, edges = self.states(source, parts, extra)
        for number, bias in enumerate(parts.graph.biases):
            yield (
                number,
                self._decode_node(nodes[bias.group], bias, parts.bias_index[number]),
            )
        for block in parts.weights:
            decoder = self.edge_decoder.maps(block.block.slot_shape, block.block.kind)
            for i, part in enumerate(block.parts):
                states = batch_outside(edges.of(block, i))
                yield (block, part), self.edge_decoder(states, decoder)

    def states(
        self,
        source: FeatureSource,
        parts: GraphTensors,
        extra: Sequence[Tensor | None] = (),
    ) -> tuple[list[Tensor], EdgeStates]:
        """What the layers make of all nodes and edges.

        extra: of every group what is added to its first states, (*batch, n, width), or
        None; may be ().

        Returns (*batch, n, width) of every group, and the edges, of which only those
        are computed that are asked for.
        """
        maps = self._edge_maps(parts)
        nodes = self._encode_nodes(source, parts)
        for group, more in enumerate(extra):
            nodes[group] = nodes[group] if more is None else nodes[group] + more
        first = partial(self._encode_edges, source, maps)
        edges = EdgeStates(
            parts.blocks,
            first,
            keep=are_kept(parts, self.width, self.position.weight),
        )
        u = None
        for k, layer in enumerate(self.layers if parts.blocks else ()):
            if self.globals is not None:
                seer = cast(GlobalFeature, self.globals[k])
                u, nodes = self._with_globals(seer, u, nodes, edges, parts)
            nodes = self._round(cast(GraphLayer, layer), nodes, edges, parts)
        return nodes, edges

    def _round(
        self,
        layer: GraphLayer,
        nodes: list[Tensor],
        edges: EdgeStates,
        parts: GraphTensors,
    ) -> list[Tensor]:
        """The nodes after a layer; the layer becomes a step of the edges."""
        is_large = not edges.keep
        arena = Arena() if is_large and nodes[0].device.type == "cpu" else None
        incoming = Inbox(len(nodes), arena)
        outgoing = Inbox(len(nodes), arena)
        ends = _BlockEndTerms(
            partial(layer.message_terms, nodes), edges.blocks, is_large
        )
        for block in edges.blocks:
            if not prod(block.block.shape):
                continue
            own = None if arena is None or len(block.parts) == 1 else Arena()
            there, back = _messages(layer, edges, block, ends.of(block), own)
            incoming.add(block.block.target, there, block.target)
            outgoing.add(block.block.source, back, block.source)
        kept = _BlockEndTerms(
            partial(layer.edge_update_terms, nodes), edges.blocks, is_large
        )

        def after(state: Tensor | None, block: BlockTensors, part: EdgeChunk) -> Tensor:
            return layer.next_edges(cast(Tensor, state), kept.of(block), part)

        edges.then(after)
        return layer.next_nodes(nodes, incoming.parts, outgoing.parts, parts.members)

    def _with_globals(
        self,
        layer: GlobalFeature,
        u: Tensor | None,
        nodes: list[Tensor],
        edges: EdgeStates,
        parts: GraphTensors,
    ) -> tuple[Tensor, list[Tensor]]:
        """The vectors of the graphs after a layer, and nodes that saw them;
        edges see them in a step."""
        of_nodes = sums_by_graph(nodes, parts.node_graph_ids, parts.node_counts)
        of_edges = sums_by_graph(
            _sums_at_targets(edges), parts.target_graph_ids, parts.node_counts
        )
        before = torch.zeros_like(of_nodes) if u is None else u
        u = layer.forward(
            before,
            of_nodes / parts.node_counts,
            of_edges / parts.edge_counts.clamp_min(1),
        )
        to_nodes = layer.to_nodes(u)
        to_edges = layer.to_edges(u)

        def seen(state: Tensor | None, block: BlockTensors, part: EdgeChunk) -> Tensor:
            g, t, _ = block.block.shape
            own = to_edges.index_select(-2, parts.target_graph_ids[block.number])
            rows = batch_inside(own.unflatten(-2, (g, t)), axes=2)
            rows = rows[part.groups, part.targets, None, None]
            return cast(Tensor, state) + rows

        edges.then(seen)
        return u, [
            v + to_nodes.index_select(-2, members)
            for v, members in zip(nodes, parts.node_graph_ids, strict=True)
        ]

    def _encode_nodes(self, source: FeatureSource, parts: GraphTensors) -> list[Tensor]:
        graph = parts.graph
        places = (
            parts.positions
            if self.has_positions
            else [torch.zeros_like(p) for p in parts.positions]
        )
        kinds = self.node_kinds(parts.kinds)
        nodes = [
            (self.position(p) + kind).expand(*source.batch, group.size, self.width)
            for p, kind, group in zip(places, kinds, graph.groups, strict=True)
        ]
        if self.activations is not None:
            codes = self.activations(parts.activations)
            nodes = [v + code for v, code in zip(nodes, codes, strict=True)]
        for number, (bias, index) in enumerate(
            zip(graph.biases, parts.bias_index, strict=True)
        ):
            maps = self.node_encoder.maps(bias.slot_shape, bias.kind)
            code = self.node_encoder(source.bias(number), maps).sum(-2)
            node = nodes[bias.group]
            nodes[bias.group] = (
                node + code if index is None else node.index_add(-2, index, code)
            )
        return nodes

    def _edge_maps(self, parts: GraphTensors) -> list[list[SlotMap]]:
        """How the edges of every weight are encoded."""
        blocks = [parts.block for parts in parts.weights]
        return [
            self.edge_encoder.maps(block.slot_shape, block.kind) for block in blocks
        ]

    def _encode_edges(
        self,
        source: FeatureSource,
        maps: Sequence[Sequence[SlotMap]],
        _: Tensor | None,
        block: BlockTensors,
        part: EdgeChunk,
    ) -> Tensor:
        """First states of a part, (groups, n_target, n_source, tiles, *batch, width)."""
        if part.view is not None:
            encoded = self.edge_encoder(source.edges(block, part), maps[block.number])
            found = batch_inside(encoded, axes=4)
            return self._placed(found, block, part)
        _, kind = self.edge_encoder.film(block.block.kind)
        cuts = (part.groups, part.targets, part.sources)
        shape = [piece.stop - piece.start for piece in cuts]
        return kind.expand(*shape, 1, *source.batch, self.width)

    def _placed(self, edges: Tensor, block: BlockTensors, part: EdgeChunk) -> Tensor:
        """Edges that know their place in a kernel, if they have one."""
        if self.slot_position is None or block.positions is None:
            return edges
        places = self.slot_position(block.positions)
        own = places if len(places) == 1 else places[part.groups]
        return edges + own.view(len(own), *[1] * (edges.dim() - 2), -1)

    def _decode_node(self, node: Tensor, bias: Bias, index: Tensor | None) -> Tensor:
        state = select_neurons(node, index).unsqueeze(-2)
        maps = self.node_decoder.maps(bias.slot_shape, bias.kind)
        tiles = state.expand(*state.shape[:-2], len(maps), self.width)
        return self.node_decoder(tiles, maps)


class _BlockEndTerms:
    """What nodes bring to the edges of blocks.

    make: finds it for some blocks. one_by_one: only of the block that was asked for
    last, as it takes more memory than the nodes.
    """

    def __init__(
        self,
        make: Callable[[Sequence[BlockTensors]], list[EndTerms]],
        blocks: Sequence[BlockTensors],
        one_by_one: bool,
    ):
        self._make, self._blocks, self._one_by_one = make, blocks, one_by_one
        self._found: dict[int, EndTerms] = {}

    def of(self, block: BlockTensors) -> EndTerms:
        if block.number not in self._found:
            some = [block] if self._one_by_one else self._blocks
            pairs = zip(some, self._make(some), strict=True)
            self._found = {own.number: ends for own, ends in pairs}
        return self._found[block.number]


def _messages(
    layer: GraphLayer,
    edges: EdgeStates,
    block: BlockTensors,
    ends: EndTerms,
    arena: Arena | None,
) -> tuple[Aggregate, Aggregate]:
    """What the messages of a block bring to its targets and to its sources. arena:
    where they are until then."""
    there: dict[tuple[int, int], Aggregate] = {}
    back: dict[tuple[int, int], Aggregate] = {}
    for i, part in enumerate(block.parts):
        found = layer.messages(edges.of(block, i), ends, part)
        places = (
            (part.groups.start, part.targets.start),
            (part.groups.start, part.sources.start),
        )
        for side, place, messages in zip((there, back), places, found, strict=True):
            before = side.get(place)
            both = messages if before is None else before.joined(messages)
            side[place] = both if arena is None else arena.kept(both, before)
    return _beside(there.values()), _beside(back.values())


def _sums_at_targets(edges: EdgeStates) -> list[Tensor]:
    """Sums of the edges that reach each target that a block names, (*batch, n, width)
    of every block."""
    found = []
    for block in edges.blocks:
        shape = block.block.shape
        sums: dict[tuple[int, int], Tensor] = {}
        for i, part in enumerate(block.parts):
            own = edges.of(block, i).sum((2, 3), keepdim=True)
            key = part.groups.start, part.targets.start
            sums[key] = sums[key] + own if key in sums else own
        pieces = [by_neuron(one) for one in sums.values()]
        assert sum(piece.shape[-2] for piece in pieces) == shape[0] * shape[1]
        found.append(torch.cat(pieces, -2))
    return found


def _beside(parts: Iterable[Aggregate]) -> Aggregate:
    first, *others = parts
    return first.beside(others)
