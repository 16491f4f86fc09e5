"""The single edges of a neural graph."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import Bias, Index
from ngopt.graph.neural_graph import GraphValues, NeuralGraph


class EdgeList(NamedTuple):
    """A neural graph as single edges, nodes numbered group after group.

    sources, targets, block: (edges,) node numbers, and the block in
    `NeuralGraph.blocks` of each. parameter, element: (edges, slots) hold, for every
    slot of every edge, the parameter's position and the flat index of the element; -1
    where a block has fewer slots than the widest, or edges of value 1. node,
    node_parameter, node_element: (node features, slots) the same for biases, and the
    node that each belongs to, (node features,).
    """

    sources: Tensor
    targets: Tensor
    block: Tensor
    parameter: Tensor
    element: Tensor
    node: Tensor
    node_parameter: Tensor
    node_element: Tensor


def to_edge_list(graph: NeuralGraph) -> EdgeList:
    """Every edge of every block, in the order of blocks, then groups, targets and
    sources."""
    starts = node_starts(graph)
    places = graph.gather(
        [
            torch.arange(spec.numel, device="cpu").reshape(spec.shape)
            for spec in graph.parameters
        ]
    )
    elements = dict(zip(graph.weights, places.edges, strict=True))
    width = max((block.slots for block in graph.weights), default=0)
    columns: list[list[Tensor]] = [[], [], [], [], []]
    for number, block in enumerate(graph.blocks):
        g, t, s = block.shape
        targets = _neurons(block.target_index, graph.groups[block.target].size).reshape(
            g, t, 1
        )
        sources = _neurons(block.source_index, graph.groups[block.source].size).reshape(
            g, 1, s
        )
        element = torch.full((g * t * s, width), -1, device="cpu")
        parameter = element.clone()
        if block.view is not None:
            element[:, : block.slots] = elements[block].reshape(-1, block.slots)
            parameter[:, : block.slots] = block.view.parameter
        row = (
            (starts[block.source] + sources).expand(g, t, s).flatten(),
            (starts[block.target] + targets).expand(g, t, s).flatten(),
            torch.full((g * t * s,), number, device="cpu"),
            parameter,
            element,
        )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    none = torch.empty(0, dtype=torch.long, device="cpu")
    edges = [
        torch.cat([none if k < 3 else none.reshape(0, width), *c])
        for k, c in enumerate(columns)
    ]
    return EdgeList._make([*edges, *_node_features(graph, starts, places)])


def _node_features(
    graph: NeuralGraph, starts: list[int], places: GraphValues
) -> tuple[Tensor, Tensor, Tensor]:
    width = max((bias_slots(bias) for bias in graph.biases), default=0)
    none = torch.empty(0, dtype=torch.long, device="cpu")
    nodes = [none]
    parameters = [none.reshape(0, width)]
    elements = [none.reshape(0, width)]
    for bias, index in zip(graph.biases, places.biases, strict=True):
        n, slots = index.shape
        nodes.append(
            starts[bias.group] + _neurons(bias.index, graph.groups[bias.group].size)
        )
        element = torch.full((n, width), -1, device="cpu")
        element[:, :slots] = index
        elements.append(element)
        parameters.append(torch.where(element >= 0, bias.view.parameter, -1))
    return torch.cat(nodes), torch.cat(parameters), torch.cat(elements)


def node_starts(graph: NeuralGraph) -> list[int]:
    """Number of the first node of every group, and the number of nodes."""
    starts = [0]
    for group in graph.groups:
        starts.append(starts[-1] + group.size)
    return starts


def bias_slots(bias: Bias) -> int:
    return prod(bias.slot_shape)


def _neurons(index: Index, size: int) -> Tensor:
    places = range(size) if index is None else index
    return torch.tensor(places, dtype=torch.long, device="cpu")
