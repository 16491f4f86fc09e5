"""Labels of nodes and edges in the parameter graph of Lim et al. 2024 (Graph
Metanetworks): types and layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ngopt.graph.connectivity import longest_paths
from ngopt.graph.groups_and_blocks import EdgeBlock
from ngopt.graph.kinds import EDGE_KINDS, NODE_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph


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
        if not (is_recurrent or is_return or is_parameter_edge(graph, block)):
            forward.append(block)
    layer = longest_paths(len(graph.groups), forward)
    for block in reversed(graph.blocks):
        if is_parameter_edge(graph, block):
            layer[block.source] = layer[block.target]
    return torch.tensor(layer, dtype=torch.long, device="cpu")


def is_parameter_edge(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block leaves the node of a parameter, whose kind its edges have."""
    return block.view is not None and block.kind == graph.groups[block.source].kind
