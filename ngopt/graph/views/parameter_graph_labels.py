"""The labels of nodes and edges in the parameter graph of Lim et al. 2024 (Graph
Metanetworks): types, layers, numbers of inputs and outputs, positions in kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.graph.connectivity import longest_paths
from ngopt.graph.groups_and_blocks import EdgeBlock
from ngopt.graph.kinds import EDGE_KINDS, NODE_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph

KERNEL_DIMS = 3


def node_types(graph: NeuralGraph) -> Tensor:
    """What the nodes of every group are: (groups,) places in `NODE_KINDS` (Lim et al.
    2024, node type)."""
    kinds = [kind_code(group.kind, NODE_KINDS) for group in graph.groups]
    return torch.tensor(kinds, dtype=torch.long, device="cpu")


def edge_types(graph: NeuralGraph) -> Tensor:
    """What the edges of every block are: (blocks,) places in `EDGE_KINDS` (Lim et al.
    2024, edge type)."""
    kinds = [kind_code(block.kind, EDGE_KINDS) for block in graph.blocks]
    return torch.tensor(kinds, dtype=torch.long, device="cpu")


def layers(graph: NeuralGraph) -> Tensor:
    """Number of every group's layer, (groups,): the longest path to it,
    0 at inputs (Lim et al. 2024, layer).

    The node of a parameter is of the layer that it works on.
    """
    pooled = {(block.target, block.source) for block in graph.constants}
    forward = []
    for block in graph.blocks:
        leads_on = not _leads_back(block, pooled)
        if leads_on and not _is_parameter_edge(graph, block):
            forward.append(block)
    layer = longest_paths(len(graph.groups), forward)
    for block in reversed(graph.blocks):
        if _is_parameter_edge(graph, block):
            layer[block.source] = layer[block.target]
    return torch.tensor(layer, dtype=torch.long, device="cpu")


def _leads_back(block: EdgeBlock, pooled: set[tuple[int, int]]) -> bool:
    """pooled: targets and sources of edges of value 1."""
    is_spread = block.kind == "spread" and (block.source, block.target) in pooled
    return is_spread or block.target == block.source


def input_output_index(graph: NeuralGraph) -> tuple[Tensor, Tensor]:
    """Number of every input and of every output neuron among its like,
    -1 for the other nodes (Lim et al. 2024).

    Pinned neurons are numbered among the outputs. Returns two (nodes,),
    the nodes in the order of `to_edge_list`.
    """
    parameters = {b.source for b in graph.blocks if _is_parameter_edge(graph, b)}
    inputs, outputs = [], []
    for i, group in enumerate(graph.groups):
        is_neuron = group.kind != "parameter" and i not in parameters
        is_output = group.is_fixed and group.role in ("hidden", "output")
        inputs.append(is_neuron and group.role == "input")
        outputs.append(is_neuron and is_output)
    return _numbered(graph, inputs), _numbered(graph, outputs)


def _numbered(graph: NeuralGraph, are_numbered: Sequence[bool]) -> Tensor:
    """Numbers of the nodes of some groups, counted through all of these; -1 for the
    others."""
    pieces = []
    count = 0
    for group, is_numbered in zip(graph.groups, are_numbered, strict=True):
        if is_numbered:
            pieces.append(torch.arange(count, count + group.size, device="cpu"))
            count += group.size
        else:
            pieces.append(torch.full((group.size,), -1, device="cpu"))
    return torch.cat(pieces)


def kernel_positions(graph: NeuralGraph) -> Tensor:
    """Kernel position of every block, (blocks, 3), aligned to the right;
    -1 where a kernel has no such dimension."""
    width = max([KERNEL_DIMS, *(len(block.position) for block in graph.blocks)])
    rows = [
        [-1] * (width - len(block.position)) + list(block.position)
        for block in graph.blocks
    ]
    return torch.tensor(rows, dtype=torch.long, device="cpu").reshape(-1, width)


def _is_parameter_edge(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block comes from the node of a parameter: its edges are of the node's
    kind."""
    return block.view is not None and block.kind == graph.groups[block.source].kind
