"""NG-GNN on a plain list of edges, one edge at a time: what the block code is tested
against."""

from math import log

import torch
from torch import Tensor

from ngopt.graph import EdgeBlock, GraphValues, NeuralGraph
from ngopt.graph.kinds import EDGE_KINDS, NODE_KINDS
from ngopt.metanets.graph_data.node_features import node_positions
from ngopt.metanets.layers.graph_network import GraphNetwork
from ngopt.metanets.layers.pna import STD_EPSILON, PNALayer

KERNEL = 3


def cut(
    features: Tensor, slot_shape: tuple[int, ...]
) -> list[tuple[Tensor, list[tuple[int, int]]]]:
    """Pads an edge's features (slots, d) into 3x3 planes: [(plane (9, d), [(slot,
    position), ...])]."""
    if len(slot_shape) < 2:  # a run of at most nine slots, centred
        runs = list(range(features.shape[0]))
        pieces = [runs[i : i + 9] for i in range(0, len(runs), 9)]
        places = [
            [(slot, (9 - len(p)) // 2 + k) for k, slot in enumerate(p)] for p in pieces
        ]
    else:
        height, width = slot_shape
        places = []
        for top in range(0, height, KERNEL):
            for left in range(0, width, KERNEL):
                h = min(KERNEL, height - top)
                w = min(KERNEL, width - left)
                y0 = (KERNEL - h) // 2
                x0 = (KERNEL - w) // 2
                places.append(
                    [
                        ((top + y) * width + left + x, (y0 + y) * KERNEL + x0 + x)
                        for y in range(h)
                        for x in range(w)
                    ]
                )
    planes = []
    for place in places:
        plane = features.new_zeros(9, features.shape[1])
        for slot, position in place:
            plane[position] = features[slot]
        planes.append((plane, place))
    return planes


def run(gnn: GraphNetwork, values: GraphValues, graph: NeuralGraph) -> GraphValues:
    starts = [
        sum(g.size for g in graph.groups[:i]) for i in range(len(graph.groups) + 1)
    ]
    positions = node_positions(graph, gnn.position.weight)
    nodes = [
        gnn.position(p[k if len(p) > 1 else 0])
        + gnn.node_kinds.weight[NODE_KINDS.index(g.kind)]
        for p, g in zip(positions, graph.groups, strict=True)
        for k in range(g.size)
    ]
    node_weight = gnn.node_encoder.weight.flatten(1)
    for bias, value in zip(graph.biases, values.biases, strict=True):
        for k, row in zip(bias.index or range(len(value)), value, strict=True):
            for plane, _ in cut(row, bias.slot_shape):
                scale, shift = gnn.node_encoder.film(bias.kind)
                code = node_weight @ plane.flatten() + gnn.node_encoder.bias
                node = starts[bias.group] + k
                nodes[node] = nodes[node] + (scale * code + shift)
    edges = []  # (source, target, state, where its outputs go)
    weight = gnn.edge_encoder.weight.flatten(1)
    for b, (block, value) in enumerate(zip(graph.weights, values.edges, strict=True)):
        for (g, i, j), source, target in ends(graph, block):
            for plane, place in cut(value[g, i, j], block.slot_shape):
                scale, shift = gnn.edge_encoder.film(block.kind)
                code = weight @ plane.flatten() + gnn.edge_encoder.bias
                nodes_of_edge = (
                    starts[block.source] + source,
                    starts[block.target] + target,
                )
                edges.append(
                    (*nodes_of_edge, scale * code + shift, (b, g, i, j, place))
                )
    for block in graph.constants:
        state = gnn.edge_encoder.film.shifts[EDGE_KINDS.index(block.kind)]
        edges += [
            (starts[block.source] + s, starts[block.target] + t, state, None)
            for _, s, t in ends(graph, block)
        ]
    for layer in gnn.layers:
        nodes, edges = step(layer, nodes, edges)
    return decode(gnn, values, graph, nodes, edges, starts)


def ends(graph: NeuralGraph, block: EdgeBlock):
    """Place in the block, source neuron and target neuron of every edge."""
    groups, targets, sources = block.shape
    source_of = block.source_index or range(graph.groups[block.source].size)
    target_of = block.target_index or range(graph.groups[block.target].size)
    for g in range(groups):
        for i in range(targets):
            for j in range(sources):
                source, target = source_of[g * sources + j], target_of[g * targets + i]
                yield (g, i, j), source, target


def step(
    layer: PNALayer, nodes: list[Tensor], edges: list
) -> tuple[list[Tensor], list]:
    width = nodes[0].shape[0]
    incoming: list[list[Tensor]] = [[] for _ in nodes]
    outgoing: list[list[Tensor]] = [[] for _ in nodes]
    new_edges = []
    for source, target, e, where in edges:
        ends = layer.target(nodes[target]) + layer.source(nodes[source])
        film = layer.film(e)
        scale_f, shift_f, scale_b, shift_b = (
            film[k * width : (k + 1) * width] for k in range(4)
        )
        incoming[target].append(scale_f * ends[:width] + shift_f)
        outgoing[source].append(scale_b * ends[width : 2 * width] + shift_b)
        hidden = layer.edge(e) + ends[2 * width :]
        new_edges.append(
            (source, target, e + layer.edge_out(hidden * hidden.sigmoid()), where)
        )
    new_nodes = []
    for v, there, back in zip(nodes, incoming, outgoing, strict=True):
        messages = aggregate(layer, v, there), aggregate(layer, v, back)
        h = layer.norm(layer.update(torch.cat([v, *messages])))
        new_nodes.append(v + h * h.sigmoid())
    return new_nodes, new_edges


def aggregate(layer: PNALayer, node: Tensor, messages: list[Tensor]) -> Tensor:
    if not messages:
        return node.new_zeros(8 * node.shape[0])
    stack = torch.stack(messages)
    mean = stack.sum(0) / len(messages)
    std = (((stack - mean) ** 2).sum(0) / len(messages) + STD_EPSILON).sqrt()
    four = torch.cat([mean, stack.min(0).values, stack.max(0).values, std])
    return torch.cat([four, four * (log(len(messages) + 1) / layer.log_degree)])


def decode(
    gnn: GraphNetwork, values: GraphValues, graph: NeuralGraph, nodes, edges, starts
) -> GraphValues:
    d_out = gnn.edge_decoder.d_out

    def decoded(decoder, kind, state):
        scale, shift = decoder.film(kind)
        state = scale * state + shift
        flat = decoder.weight.flatten(0, 1) @ state + decoder.bias.flatten()
        return flat.reshape(9, d_out)

    out = [e.new_zeros(*e.shape[:4], d_out) for e in values.edges]
    for _, _, e, where in edges:
        if where is not None:
            b, g, i, j, place = where
            for slot, position in place:
                out[b][g, i, j, slot] = decoded(
                    gnn.edge_decoder, graph.weights[b].kind, e
                )[position]
    biases = [b.new_zeros(*b.shape[:2], d_out) for b in values.biases]
    for bias, value, result in zip(graph.biases, values.biases, biases, strict=True):
        for k, n in enumerate(bias.index or range(len(value))):
            for _, place in cut(value[k], bias.slot_shape):
                for slot, position in place:
                    result[k, slot] = decoded(
                        gnn.node_decoder, bias.kind, nodes[starts[bias.group] + n]
                    )[position]
    return GraphValues(tuple(biases), tuple(out))
