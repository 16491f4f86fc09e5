"""The single edges of a neural graph."""

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ngopt.graph.groups_and_blocks import Index
from ngopt.graph.neural_graph import NeuralGraph


class EdgeList(NamedTuple):
    """A neural graph as single edges. Nodes are numbered group after group.

    Attributes:
        sources, targets: (edges,) node numbers.
        block: (edges,) positions in `NeuralGraph.blocks`.
        parameter, element: (edges, slots) the position of the parameter and the flat
            index of the element in every slot; -1 for edges of value 1, and where a
            block has fewer slots than the widest.
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


def to_edge_list(graph: NeuralGraph) -> EdgeList:
    """Every edge in the order of blocks, then groups, targets and sources."""
    parameters = graph.parameters
    numbers = [torch.arange(p.numel, device="cpu").reshape(p.shape) for p in parameters]
    elements = graph.gather(numbers)
    starts = node_starts(graph)
    none = torch.empty(0, dtype=torch.long, device="cpu")
    nodes = [none]
    slots = []
    for bias, element in zip(graph.biases, elements.biases, strict=True):
        nodes.append(_nodes(starts, bias.group, bias.index))
        slots.append((bias.view.parameter, element))
    node_parameter, node_element = _padded(slots)
    sources, targets, blocks = [none], [none], [none]
    slots = []
    of_weights = iter(elements.edges)
    for number, block in enumerate(graph.blocks):
        groups, n_target, n_source = block.shape
        source = _nodes(starts, block.source, block.source_index)
        target = _nodes(starts, block.target, block.target_index)
        source = source.reshape(groups, 1, n_source).expand(block.shape)
        target = target.reshape(groups, n_target, 1).expand(block.shape)
        sources.append(source.flatten())
        targets.append(target.flatten())
        count = prod(block.shape)
        blocks.append(torch.full((count,), number, device="cpu"))
        if block.view is None:
            slots.append((-1, none.new_empty(count, 0)))
        else:
            element = next(of_weights).reshape(count, block.slots)
            slots.append((block.view.parameter, element))
    parameter, element = _padded(slots)
    return EdgeList(
        sources=torch.cat(sources),
        targets=torch.cat(targets),
        block=torch.cat(blocks),
        parameter=parameter,
        element=element,
        node=torch.cat(nodes),
        node_parameter=node_parameter,
        node_element=node_element,
    )


def _padded(slots: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Parameter and element of every slot, (n, slots) each; or -1.

    slots: the parameter of each block or bias, and its elements (n, slots).
    """
    width = max((element.shape[1] for _, element in slots), default=0)
    none = torch.empty((0, width), dtype=torch.long, device="cpu")
    parameters, elements = [none], [none]
    for parameter, element in slots:
        padded = pad(element, (0, width - element.shape[1]), value=-1)
        parameters.append(torch.where(padded >= 0, parameter, -1))
        elements.append(padded)
    return torch.cat(parameters), torch.cat(elements)


def node_starts(graph: NeuralGraph) -> list[int]:
    """Number of the first node of every group, and the number of nodes."""
    return list(accumulate((group.size for group in graph.groups), initial=0))


def _nodes(starts: Sequence[int], group: int, index: Index) -> Tensor:
    """The numbers of some neurons of a group."""
    nodes = torch.arange(starts[group], starts[group + 1], device="cpu")
    return nodes if index is None else nodes[list(index)]
