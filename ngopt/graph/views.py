"""Views of a neural graph: the list of its single edges, and a table for people."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph.core import NeuralGraph


class EdgeList(NamedTuple):
    """A neural graph as single edges, nodes numbered group after group.

    sources, targets: (edges,) node numbers. parameter, element: (edges, slots) hold, for every slot
    of every edge, the parameter's position and the flat index of the element; -1 where a block has
    fewer slots than the widest. node_parameter, node_element: (nodes,) the same for the bias, -1
    where a node has none.
    """

    sources: Tensor
    targets: Tensor
    parameter: Tensor
    element: Tensor
    node_parameter: Tensor
    node_element: Tensor


def to_edge_list(graph: NeuralGraph) -> EdgeList:
    """Every edge of every block, in the order of blocks, then targets, then sources."""
    offsets = [0]
    for group in graph.groups:
        offsets.append(offsets[-1] + group.size)
    places = graph.gather([torch.arange(spec.numel).reshape(spec.shape) for spec in graph.parameters])
    width = max((block.slots for block in graph.blocks), default=0)
    sources, targets, parameter, element = [], [], [], []
    for block, index in zip(graph.blocks, places.edges, strict=True):
        n_target, n_source, slots = index.shape
        targets.append(offsets[block.target] + torch.arange(n_target).repeat_interleave(n_source))
        sources.append(offsets[block.source] + torch.arange(n_source).repeat(n_target))
        padding = torch.full((n_target * n_source, width - slots), -1)
        element.append(torch.cat([index.reshape(-1, slots), padding], dim=1))
        parameter.append(torch.where(element[-1] >= 0, block.parameter, -1))
    node_parameter, node_element = torch.full((2, offsets[-1]), -1)
    for bias, index in zip(graph.biases, places.biases, strict=True):
        nodes = slice(offsets[bias.group], offsets[bias.group + 1])
        node_parameter[nodes], node_element[nodes] = bias.parameter, index
    empty = torch.empty(0, dtype=torch.long)
    return EdgeList(
        torch.cat([empty, *sources]),
        torch.cat([empty, *targets]),
        torch.cat([empty.reshape(0, width), *parameter]),
        torch.cat([empty.reshape(0, width), *element]),
        node_parameter,
        node_element,
    )


def summary(graph: NeuralGraph) -> str:
    """See `NeuralGraph.summary`."""
    rows = [("layer", "edges", "slots", "bias", "elements", "role")]
    bias_of = {bias.group: bias.parameter for bias in graph.biases}
    block_of = {block.target: block for block in graph.blocks}
    for i, group in enumerate(graph.groups):
        block, elements, edges, slots = block_of.get(i), 0, "", ""
        if block is not None:
            elements += graph.parameters[block.parameter].numel
            edges = f"{graph.groups[block.source].size} -> {group.size}"
            slots = "x".join(map(str, block.slot_shape)) or "1"
        if i in bias_of:
            elements += group.size
        row = (group.name, edges or f"{group.size}", slots, "yes" if i in bias_of else "", f"{elements:,}", group.role)
        rows.append(row)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    sources, targets = {b.source for b in graph.blocks}, {b.target for b in graph.blocks}
    roots = len([i for i in range(len(graph.groups)) if i not in targets])
    alone = sum(graph.groups[b.group].size for b in graph.biases if b.group not in sources | targets)
    nodes = sum(group.size for group in graph.groups)
    lines.append(
        f"{nodes:,} neurons in {len(graph.groups)} groups, {graph.numel:,} parameter elements in {len(graph.blocks)} "
        f"blocks and {len(graph.biases)} biases; {roots} component{'s' if roots != 1 else ''}, "
        f"{alone:,} elements unconnected"
    )
    return "\n".join(lines)
