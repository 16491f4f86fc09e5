"""Labels of nodes and edges in the parameter graph of Lim et al. 2024 (Graph
Metanetworks): types, layers, numbers of inputs and outputs, positions in kernels."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ngopt.graph.connectivity import longest_paths
from ngopt.graph.groups_and_blocks import EdgeBlock
from ngopt.graph.kinds import EDGE_KINDS, NODE_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph

KERNEL_DIMS = 3


def node_types(graph: NeuralGraph) -> Tensor:
    """The kind of every group, (groups,) positions in `NODE_KINDS` (Lim et al. 2024,
    node type)."""
    kinds = [kind_code(group.kind, NODE_KINDS) for group in graph.groups]
    return torch.tensor(kinds, dtype=torch.long, device="cpu")


def edge_types(graph: NeuralGraph) -> Tensor:
    """The kind of every block, (blocks,) positions in `EDGE_KINDS` (Lim et al. 2024,
    edge type)."""
    kinds = [kind_code(block.kind, EDGE_KINDS) for block in graph.blocks]
    return torch.tensor(kinds, dtype=torch.long, device="cpu")


def layers(graph: NeuralGraph) -> Tensor:
    """The layer of every group, (groups,): the length of the longest path to it, 0 at
    inputs (Lim et al. 2024, layer).

    The node of a parameter has the layer of its neurons.
    """
    pooled = {(block.target, block.source) for block in graph.constants}
    forward = []
    for block in graph.blocks:
        is_recurrent = block.target == block.source
        # back from a node that stands for several to these
        is_return = block.kind == "spread" and (block.source, block.target) in pooled
        if not (is_recurrent or is_return or _is_parameter_edge(graph, block)):
            forward.append(block)
    layer = longest_paths(len(graph.groups), forward)
    for block in reversed(graph.blocks):
        if _is_parameter_edge(graph, block):
            layer[block.source] = layer[block.target]
    return torch.tensor(layer, dtype=torch.long, device="cpu")


def input_output_index(graph: NeuralGraph) -> tuple[Tensor, Tensor]:
    """The number of every neuron among the inputs, and among the outputs; -1 for other
    nodes (Lim et al. 2024).

    Pinned neurons count as outputs. Returns two (nodes,), in the order of
    `to_edge_list`.
    """
    inputs, outputs = set(), set()
    for i, group in enumerate(graph.groups):
        if group.kind == "parameter":
            continue
        if group.role == "input":
            inputs.add(i)
        elif group.role != "isolated" and group.is_fixed:
            outputs.add(i)
    for block in graph.blocks:
        if _is_parameter_edge(graph, block):
            inputs.discard(block.source)
            outputs.discard(block.source)
    return _numbered(graph, inputs), _numbered(graph, outputs)


def _numbered(graph: NeuralGraph, groups: Collection[int]) -> Tensor:
    """Numbers of the nodes of some groups, counted through all of them; -1 for
    others."""
    numbers = []
    count = 0
    for i, group in enumerate(graph.groups):
        if i in groups:
            numbers.append(torch.arange(count, count + group.size, device="cpu"))
            count += group.size
        else:
            numbers.append(torch.full((group.size,), -1, device="cpu"))
    return torch.cat(numbers)


def kernel_positions(graph: NeuralGraph) -> Tensor:
    """Kernel position of every block, (blocks, 3), aligned to the right; -1 where a
    kernel has no such dimension."""
    dims = [len(block.position) for block in graph.blocks]
    width = max([KERNEL_DIMS, *dims])
    positions = torch.full((len(dims), width), -1, device="cpu")
    for row, block in enumerate(graph.blocks):
        if block.position:
            positions[row, -len(block.position) :] = torch.tensor(block.position)
    return positions


def _is_parameter_edge(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block leaves the node of a parameter, whose kind its edges have."""
    return block.view is not None and block.kind == graph.groups[block.source].kind
