"""Graph networks on neural graphs: encoders, rounds of message passing, decoders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from ngopt.graph.kinds import BIAS_KINDS, EDGE_KINDS, NODE_KINDS
from ngopt.graph.neural_graph import GraphValues, NeuralGraph
from ngopt.metanets.graph_data import graph_tensors, node_features
from ngopt.metanets.graph_data.feature_sources import FeatureSource, WholeValues
from ngopt.metanets.graph_data.graph_tensors import EdgeChunk, GraphTensors
from ngopt.metanets.layers import aggregation, graph_layer, slot_encoders
from ngopt.metanets.layers.aggregation import Aggregate, Arena, Incoming, scatter_sum
from ngopt.metanets.layers.edge_states import EdgeStates, fits_in_memory
from ngopt.metanets.layers.global_feature import GlobalFeature
from ngopt.metanets.layers.graph_layer import EndTerms, GraphLayer
from ngopt.metanets.layers.slot_encoders import SlotDecoder, SlotEncoder, maps_of

Extra = Sequence[Tensor | None]
"""Added to the first states of every group, (*batch, n, width), or None; may be ()."""


@dataclass(frozen=True)
class GraphNetworkOptions:
    """What a graph network reads beside the features of parameters.

    Attributes:
        activations: Nodes have an embedding of the function that the network applies to
            them.
        global_feature: Every layer has a vector for the whole graph.
        positions: Nodes have their positions, see `node_positions`.
        slot_positions: Edges of a parameter graph have their place in a kernel.
    """

    activations: bool = False
    global_feature: bool = False
    positions: bool = True
    slot_positions: bool = False


class GraphNetwork(nn.Module):
    """Features on a neural graph to features on the same graph, through rounds of
    message passing.

    Kinds of nodes and edges are part of their features. Edges without a parameter start
    from a learned vector for their kind.

    Shapes: `GraphValues` with d_in features -> `GraphValues` with d_out features.

    Args:
        d_out: None if only `states` is used.
        layers: The rounds.
        kernel: Largest (height, width) of a kernel on one edge.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int | None,
        width: int,
        layers: Sequence[GraphLayer],
        kernel: graph_tensors.Kernel,
        options: GraphNetworkOptions | None = None,
    ):
        super().__init__()
        options = options or GraphNetworkOptions()
        self.width = width
        self.kernel = kernel
        self.has_positions = options.positions
        self.slot_position, self.activations, self.globals = None, None, None
        if options.slot_positions:
            features = node_features.SLOT_FEATURES
            self.slot_position = nn.Linear(features, width, bias=False)
        if options.activations:
            self.activations = nn.Embedding(len(node_features.ACTIVATIONS), width)
        if options.global_feature:
            self.globals = nn.ModuleList(GlobalFeature(width) for _ in layers)
        self.edge_encoder = SlotEncoder(d_in, width, kernel, EDGE_KINDS)
        self.node_encoder = SlotEncoder(d_in, width, kernel, BIAS_KINDS)
        self.node_kinds = nn.Embedding(len(NODE_KINDS), width)
        self.position = nn.Linear(node_features.POSITION_FEATURES, width)
        self.layers = nn.ModuleList(layers)
        if d_out is not None:
            self.edge_decoder = SlotDecoder(width, d_out, kernel, EDGE_KINDS)
            self.node_decoder = SlotDecoder(width, d_out, kernel, BIAS_KINDS)

    def forward(self, values: GraphValues, graph: NeuralGraph) -> GraphValues:
        like = self.position.weight
        if graph.parameters:
            like = (*values.edges, *values.biases)[0]
        batch = like.shape[:-5] if values.edges else like.shape[:-3]
        tensors = graph_tensors.graph_tensors(graph, self.kernel, like)
        return self.decoded(WholeValues(values, batch), tensors)

    def decoded(
        self, source: FeatureSource, tensors: GraphTensors, extra: Extra = ()
    ) -> GraphValues:
        """`pieces` of a graph whose blocks are one chunk each."""
        like = self.position.weight
        biases: list[Tensor] = [like] * len(tensors.graph.biases)
        edges: list[Tensor] = [like] * len(tensors.graph.weights)
        for place, values in self.pieces(source, tensors, extra):
            if isinstance(place, int):
                biases[place] = values
            else:
                edges[place.block] = values
        return GraphValues(tuple(biases), tuple(edges))

    def pieces(
        self, source: FeatureSource, tensors: GraphTensors, extra: Extra = ()
    ) -> graph_tensors.Contexts:
        """The output, place by place.

        Of a bias, by its number, `(*batch, n, slots, d_out)`; of a chunk of a weight
        `(*batch, groups, n_target, n_source, slots, d_out)`. Edge states of large
        graphs are recomputed instead of stored, unless autograd stores them.
        """
        nodes, edges = self.states(source, tensors, extra)
        all_maps = maps_of(self.node_decoder, tensors.graph.biases)
        for number, bias in enumerate(tensors.graph.biases):
            index = tensors.bias_index[number]
            node = graph_layer.select_neurons(nodes[bias.group], index)
            *rows, width = node.shape
            maps = all_maps[number]
            state = node.unsqueeze(-2).expand(*rows, len(maps), width)
            yield number, self.node_decoder(state, maps)
        all_maps = maps_of(self.edge_decoder, tensors.graph.weights)
        for block, maps in zip(tensors.weights, all_maps, strict=True):
            for chunk in block.chunks:
                states = aggregation.batch_outside(edges.of(chunk))
                yield chunk, self.edge_decoder(states, maps)

    def states(
        self, source: FeatureSource, tensors: GraphTensors, extra: Extra = ()
    ) -> tuple[list[Tensor], EdgeStates]:
        """States of nodes and edges after all layers.

        Returns `(*batch, n, width)` of every group, and the edges, which are computed
        when read.
        """
        maps = maps_of(self.edge_encoder, tensors.graph.weights)
        nodes = self._encode_nodes(source, tensors)
        for group, more in enumerate(extra):
            if more is not None:
                nodes[group] = nodes[group] + more
        first = partial(self._encode_edges, source, tensors, maps)
        keep = fits_in_memory(tensors, self.width, self.position.weight)
        edges = EdgeStates(tensors.blocks, first, keep)
        u = None
        for k, layer in enumerate(self.layers):
            if self.globals is not None:
                shared = cast(GlobalFeature, self.globals[k])
                u, nodes = _add_global(shared, u, nodes, edges, tensors)
            nodes = run_layer(cast(GraphLayer, layer), nodes, edges, tensors)
        return nodes, edges

    def _encode_nodes(
        self, source: FeatureSource, tensors: GraphTensors
    ) -> list[Tensor]:
        graph = tensors.graph
        kinds = self.node_kinds(tensors.kinds)
        nodes = []
        for group, position, kind in zip(
            graph.groups, tensors.positions, kinds, strict=True
        ):
            if not self.has_positions:
                position = torch.zeros_like(position)
            node = self.position(position) + kind
            nodes.append(node.expand(*source.batch, group.size, self.width))
        if self.activations is not None:
            codes = self.activations(tensors.activations)
            for i, code in enumerate(codes):
                nodes[i] = nodes[i] + code
        all_maps = maps_of(self.node_encoder, graph.biases)
        for number, bias in enumerate(graph.biases):
            code = self.node_encoder(source.bias(number), all_maps[number])
            code = code.sum(-2)
            node = nodes[bias.group]
            index = tensors.bias_index[number]
            if index is None:
                nodes[bias.group] = node + code
            else:
                nodes[bias.group] = node.index_add(-2, index, code)
        return nodes

    def _encode_edges(
        self,
        source: FeatureSource,
        tensors: GraphTensors,
        maps: Sequence[Sequence[slot_encoders.SlotMap]],
        _: Tensor | None,
        chunk: EdgeChunk,
    ) -> Tensor:
        """First states of a chunk, (groups, n_target, n_source, tiles, *batch,
        width)."""
        block = tensors.blocks[chunk.block]
        if chunk.view is None:
            _, kind = self.edge_encoder.film(block.block.kind)
            return kind.expand(*chunk.shape, 1, *source.batch, self.width)
        encoded = self.edge_encoder(source.edges(chunk), maps[chunk.block])
        edges = graph_layer.batch_inside(encoded, axes=4)
        if self.slot_position is None or block.positions is None:
            return edges
        position = self.slot_position(block.positions)
        if len(position) > 1:
            position = position[chunk.groups]
        between = [1] * (edges.dim() - 2)
        return edges + position.view(len(position), *between, -1)


def run_layer(
    layer: GraphLayer, nodes: list[Tensor], edges: EdgeStates, tensors: GraphTensors
) -> list[Tensor]:
    """The nodes after a layer; the layer becomes a step of the edges."""
    is_large = not edges.keep
    arena = Arena() if is_large and nodes[0].device.type == "cpu" else None
    incoming: list[list[Incoming]] = [[] for _ in nodes]
    outgoing: list[list[Incoming]] = [[] for _ in nodes]
    columns = slice(0, -layer.width)
    terms_of = _end_terms(layer, nodes, columns, edges.blocks, is_large)
    for block in edges.blocks:
        if not prod(block.block.shape):
            continue
        block_arena = None if arena is None or len(block.chunks) == 1 else Arena()
        terms = terms_of(block.number)
        forward, backward = _messages(layer, edges, block, terms, block_arena)
        to_target = Incoming(forward, block.target)
        aggregation.add_to_group(incoming[block.block.target], to_target, arena)
        to_source = Incoming(backward, block.source)
        aggregation.add_to_group(outgoing[block.block.source], to_source, arena)
    columns = slice(-layer.width, None)
    update_terms_of = _end_terms(layer, nodes, columns, edges.blocks, is_large)

    def update(state: Tensor | None, chunk: EdgeChunk) -> Tensor:
        terms = update_terms_of(chunk.block)
        return layer.next_edges(cast(Tensor, state), terms, chunk)

    edges.then(update)
    return layer.next_nodes(nodes, incoming, outgoing, tensors.graph_ids)


def _messages(
    layer: GraphLayer,
    edges: EdgeStates,
    block: graph_tensors.BlockTensors,
    terms: EndTerms,
    arena: Arena | None,
) -> tuple[Aggregate, Aggregate]:
    """The messages of a block, aggregated at its targets and at its sources.

    arena: memory for them until all chunks are done.
    """
    at_targets: dict[tuple[int, int], Aggregate] = {}
    at_sources: dict[tuple[int, int], Aggregate] = {}
    for chunk in block.chunks:
        forward, backward = layer.messages(edges.of(chunk), terms, chunk)
        group = chunk.groups.start
        key = group, chunk.targets.start
        before = at_targets.get(key)
        at_targets[key] = aggregation.merged(before, forward, arena)
        key = group, chunk.sources.start
        before = at_sources.get(key)
        at_sources[key] = aggregation.merged(before, backward, arena)
    forward = aggregation.of_consecutive_neurons(at_targets.values())
    return forward, aggregation.of_consecutive_neurons(at_sources.values())


def _end_terms(
    layer: GraphLayer,
    nodes: Sequence[Tensor],
    columns: slice,
    blocks: Sequence[graph_tensors.BlockTensors],
    is_large: bool,
) -> Callable[[int], EndTerms]:
    """The `EndTerms` of blocks by number, computed when first read.

    is_large: only those of one block are stored, as they take more memory than the
    nodes.
    """
    stored: dict[int, EndTerms] = {}

    def terms_of(number: int) -> EndTerms:
        if number not in stored:
            stored.clear()
            wanted = [blocks[number]] if is_large else blocks
            of_wanted = layer.end_terms(nodes, columns, wanted)
            for block, terms in zip(wanted, of_wanted, strict=True):
                stored[block.number] = terms
        return stored[number]

    return terms_of


def _add_global(
    layer: GlobalFeature,
    u: Tensor | None,
    nodes: list[Tensor],
    edges: EdgeStates,
    tensors: GraphTensors,
) -> tuple[Tensor, list[Tensor]]:
    """The vectors of the graphs after a layer, and the nodes plus maps of them; adding
    maps to the edges becomes a step of the edges."""
    ids = tensors.node_graph_ids
    counts = tensors.node_counts
    graphs = len(counts)
    of_nodes = scatter_sum(torch.cat(nodes, -2), torch.cat(ids), graphs)
    of_edges = torch.zeros_like(of_nodes)
    if edges.blocks:
        at_targets = torch.cat(_sums_at_targets(edges), -2)
        of_edges = scatter_sum(at_targets, torch.cat(tensors.target_graph_ids), graphs)
    before = torch.zeros_like(of_nodes) if u is None else u
    edge_counts = tensors.edge_counts.clamp_min(1)
    u = layer.forward(before, of_nodes / counts, of_edges / edge_counts)
    to_nodes = layer.to_nodes(u)
    to_edges = layer.to_edges(u)

    def add(state: Tensor | None, chunk: EdgeChunk) -> Tensor:
        g, t, _ = tensors.blocks[chunk.block].block.shape
        of_targets = tensors.target_graph_ids[chunk.block]
        of_block = to_edges.index_select(-2, of_targets).unflatten(-2, (g, t))
        inside = graph_layer.batch_inside(of_block, axes=2)
        return cast(Tensor, state) + inside[chunk.groups, chunk.targets, None, None]

    edges.then(add)
    pairs = zip(nodes, ids, strict=True)
    return u, [node + to_nodes.index_select(-2, of_group) for node, of_group in pairs]


def _sums_at_targets(edges: EdgeStates) -> list[Tensor]:
    """Sums of the edges that reach each target of each block, (*batch, n, width)."""
    sums_of_blocks = []
    for block in edges.blocks:
        sums: dict[tuple[int, int], Tensor] = {}
        for chunk in block.chunks:
            total = edges.of(chunk).sum((2, 3), keepdim=True)
            key = chunk.groups.start, chunk.targets.start
            sums[key] = sums[key] + total if key in sums else total
        pieces = list(map(aggregation.by_neuron, sums.values()))
        sums_of_blocks.append(torch.cat(pieces, -2))
    return sums_of_blocks
