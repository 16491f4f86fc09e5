"""NG-GNN on a plain list of edges, one edge at a time: what the block code is tested against."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from ngopt.graph import GraphValues, NeuralGraph
from ngopt.models.encoders import node_positions
from ngopt.models.gnn import STD_EPSILON, GraphNetwork, PNALayer

KERNEL = 3


def cut(features: Tensor, slot_shape: tuple[int, ...]) -> list[tuple[Tensor, list[tuple[int, int]]]]:
    """Pads an edge's features (slots, d) into 3x3 planes: [(plane (9, d), [(slot, position), ...])]."""
    if len(slot_shape) < 2:  # a run of at most nine slots, centred
        runs = list(range(features.shape[0]))
        pieces = [runs[i : i + 9] for i in range(0, len(runs), 9)]
        places = [[(slot, (9 - len(p)) // 2 + k) for k, slot in enumerate(p)] for p in pieces]
    else:
        height, width = slot_shape
        places = []
        for top in range(0, height, KERNEL):
            for left in range(0, width, KERNEL):
                h, w = min(KERNEL, height - top), min(KERNEL, width - left)
                y0, x0 = (KERNEL - h) // 2, (KERNEL - w) // 2
                places.append(
                    [((top + y) * width + left + x, (y0 + y) * KERNEL + x0 + x) for y in range(h) for x in range(w)]
                )
    planes = []
    for place in places:
        plane = features.new_zeros(9, features.shape[1])
        for slot, position in place:
            plane[position] = features[slot]
        planes.append((plane, place))
    return planes


def run(gnn: GraphNetwork, values: GraphValues, graph: NeuralGraph) -> GraphValues:
    starts = [sum(g.size for g in graph.groups[:i]) for i in range(len(graph.groups) + 1)]
    group_of = [i for i, g in enumerate(graph.groups) for _ in range(g.size)]
    positions = gnn.position(node_positions(graph, gnn.position.weight))
    nodes = [positions[g] for g in group_of]
    for bias, value in zip(graph.biases, values.biases, strict=True):
        for k, row in enumerate(value):
            nodes[starts[bias.group] + k] = nodes[starts[bias.group] + k] + gnn.node_encoder(row)
    edges = []  # (source, target, state, where its outputs go)
    weight = gnn.edge_encoder.weight.flatten(1)
    for b, (block, value) in enumerate(zip(graph.blocks, values.edges, strict=True)):
        for i in range(value.shape[0]):
            for j in range(value.shape[1]):
                for plane, place in cut(value[i, j], block.slot_shape):
                    state = weight @ plane.flatten() + gnn.edge_encoder.bias
                    edges.append((starts[block.source] + j, starts[block.target] + i, state, (b, i, j, place)))
    for layer in gnn.layers:
        nodes, edges = step(layer, nodes, edges)
    return decode(gnn, values, graph, nodes, edges, starts)


def step(layer: PNALayer, nodes: list[Tensor], edges: list) -> tuple[list[Tensor], list]:
    width = nodes[0].shape[0]
    incoming: list[list[Tensor]] = [[] for _ in nodes]
    outgoing: list[list[Tensor]] = [[] for _ in nodes]
    new_edges = []
    for source, target, e, where in edges:
        both = layer.target(nodes[target]) + layer.source(nodes[source])
        film = layer.film(e)
        scale_f, shift_f, scale_b, shift_b = (film[k * width : (k + 1) * width] for k in range(4))
        incoming[target].append(scale_f * both[:width] + shift_f)
        outgoing[source].append(scale_b * both[width : 2 * width] + shift_b)
        hidden = layer.edge(e) + both[2 * width :]
        new_edges.append((source, target, e + layer.edge_out(hidden * hidden.sigmoid()), where))
    new_nodes = []
    for v, there, back in zip(nodes, incoming, outgoing, strict=True):
        h = layer.norm(layer.update(torch.cat([v, aggregate(layer, v, there), aggregate(layer, v, back)])))
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


def decode(gnn: GraphNetwork, values: GraphValues, graph: NeuralGraph, nodes, edges, starts) -> GraphValues:
    d_out = gnn.edge_decoder.d_out
    out = [e.new_zeros(*e.shape[:3], d_out) for e in values.edges]
    for _, _, e, (b, i, j, place) in edges:
        full = (gnn.edge_decoder.weight.flatten(0, 1) @ e + gnn.edge_decoder.bias.flatten()).reshape(9, d_out)
        for slot, position in place:
            out[b][i, j, slot] = full[position]
    biases = tuple(
        torch.stack([gnn.node_decoder(nodes[n]) for n in range(starts[b.group], starts[b.group + 1])])
        for b in graph.biases
    )
    return GraphValues(biases, tuple(out))
