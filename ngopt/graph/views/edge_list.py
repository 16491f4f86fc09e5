"""The single edges of a neural graph."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import Index
from ngopt.graph.neural_graph import GraphValues, NeuralGraph


class EdgeList(NamedTuple):
    """A neural graph as single edges. Nodes are numbered group after group.

    sources, targets: (edges,) node numbers.
    block: (edges,) positions in `NeuralGraph.blocks`.
    parameter, element: (edges, slots) the position of the parameter and the flat index
        of the element in every slot; -1 for edges of value 1, and where a block has
        fewer slots than the widest.
    node: (node features,) the node that has each feature, which is part of a bias.
    node_parameter, node_element: (node features, slots) the same as for edges.
    """

    sources: Tensor
    targets: Tensor
    block: Tensor
    parameter: Tensor
    element: Tensor
    node: Tensor
    node_parameter: Tensor
    node_element: Tensor


class Slots(NamedTuple):
    """Parameter and element of every slot of n nodes or edges, (n, slots); or -1."""

    parameter: Tensor
    element: Tensor

    @property
    def mask(self) -> Tensor:
        return self.element >= 0


def to_edge_list(graph: NeuralGraph) -> EdgeList:
    """Every edge of every block, in the order of blocks, then groups, targets and
    sources."""
    numbers = []
    for spec in graph.parameters:
        flat = torch.arange(spec.numel, device="cpu")
        numbers.append(flat.reshape(spec.shape))
    elements = graph.gather(numbers)
    sources, targets, blocks = _edges(graph)
    edge_slots = _edge_slots(graph, elements)
    nodes, node_slots = _node_features(graph, elements)
    return EdgeList(sources, targets, blocks, *edge_slots, nodes, *node_slots)


def _edges(graph: NeuralGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target and block of every edge."""
    starts = node_starts(graph)
    none = torch.empty(0, dtype=torch.long, device="cpu")
    sources, targets, blocks = [none], [none], [none]
    for number, block in enumerate(graph.blocks):
        groups, n_target, n_source = block.shape
        source = _neurons(block.source_index, graph.groups[block.source].size)
        target = _neurons(block.target_index, graph.groups[block.target].size)
        source = (starts[block.source] + source).reshape(groups, 1, n_source)
        target = (starts[block.target] + target).reshape(groups, n_target, 1)
        sources.append(source.expand(block.shape).flatten())
        targets.append(target.expand(block.shape).flatten())
        blocks.append(torch.full((prod(block.shape),), number, device="cpu"))
    return torch.cat(sources), torch.cat(targets), torch.cat(blocks)


def _edge_slots(graph: NeuralGraph, elements: GraphValues) -> Slots:
    width = max((block.slots for block in graph.weights), default=0)
    slots = [_no_slots(0, width)]
    of_weights = iter(elements.edges)
    for block in graph.blocks:
        count = prod(block.shape)
        if block.view is None:
            slots.append(_no_slots(count, width))
        else:
            element = next(of_weights).reshape(count, block.slots)
            slots.append(_padded(block.view.parameter, element, width))
    return _joined(slots)


def _node_features(graph: NeuralGraph, elements: GraphValues) -> tuple[Tensor, Slots]:
    """The node of every feature, and its slots."""
    starts = node_starts(graph)
    width = max((bias.slots for bias in graph.biases), default=0)
    nodes = [torch.empty(0, dtype=torch.long, device="cpu")]
    slots = [_no_slots(0, width)]
    for bias, element in zip(graph.biases, elements.biases, strict=True):
        neurons = _neurons(bias.index, graph.groups[bias.group].size)
        nodes.append(starts[bias.group] + neurons)
        slots.append(_padded(bias.view.parameter, element, width))
    return torch.cat(nodes), _joined(slots)


def _no_slots(count: int, width: int) -> Slots:
    nowhere = torch.full((count, width), -1, device="cpu")
    return Slots(nowhere, nowhere)


def _padded(parameter: int, element: Tensor, width: int) -> Slots:
    """element: (n, slots) of one block or bias."""
    padded = torch.full((len(element), width), -1, device="cpu")
    padded[:, : element.shape[1]] = element
    return Slots(torch.where(padded >= 0, parameter, -1), padded)


def _joined(slots: list[Slots]) -> Slots:
    parameters, elements = zip(*slots, strict=True)
    return Slots(torch.cat(parameters), torch.cat(elements))


def node_starts(graph: NeuralGraph) -> list[int]:
    """Number of the first node of every group, and the number of nodes."""
    starts = [0]
    for group in graph.groups:
        starts.append(starts[-1] + group.size)
    return starts


def _neurons(index: Index, size: int) -> Tensor:
    places = range(size) if index is None else index
    return torch.tensor(places, dtype=torch.long, device="cpu")
