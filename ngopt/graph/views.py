"""Views of a neural graph: the list of its single edges, and a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph.core import Bias, EdgeBlock, GraphValues, Index, NeuralGraph, NeuronGroup
from ngopt.graph.topology import components

NAME_WIDTH = 50  # characters of a group's name in the table
LISTED = 3  # as many blocks or sources of a group are listed, of more only their number is given
NUMBERS = ("", "nodes", "elements")  # columns that end at their right


class EdgeList(NamedTuple):
    """A neural graph as single edges, nodes numbered group after group.

    sources, targets, block: (edges,) node numbers, and the block in `NeuralGraph.blocks` of each.
    parameter, element: (edges, slots) hold, for every slot of every edge, the parameter's position
    and the flat index of the element; -1 where a block has fewer slots than the widest, or edges of
    value 1. node, node_parameter, node_element: (node features, slots) the same for biases, and
    the node that each belongs to, (node features,).
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
    """Every edge of every block, in the order of blocks, then groups, targets and sources."""
    starts = node_starts(graph)
    places = graph.gather([torch.arange(spec.numel).reshape(spec.shape) for spec in graph.parameters])
    elements = dict(zip(graph.weights, places.edges, strict=True))
    width = max((block.slots for block in graph.weights), default=0)
    columns: list[list[Tensor]] = [[], [], [], [], []]
    for number, block in enumerate(graph.blocks):
        g, t, s = block.shape
        targets = _neurons(block.target_index, graph.groups[block.target].size).reshape(g, t, 1)
        sources = _neurons(block.source_index, graph.groups[block.source].size).reshape(g, 1, s)
        element = torch.full((g * t * s, width), -1)
        parameter = element.clone()
        if block.view is not None:
            element[:, : block.slots] = elements[block].reshape(-1, block.slots)
            parameter[:, : block.slots] = block.view.parameter
        row = (
            (starts[block.source] + sources).expand(g, t, s).flatten(),
            (starts[block.target] + targets).expand(g, t, s).flatten(),
            torch.full((g * t * s,), number),
            parameter,
            element,
        )
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    none = torch.empty(0, dtype=torch.long)
    edges = [torch.cat([none if k < 3 else none.reshape(0, width), *c]) for k, c in enumerate(columns)]
    return EdgeList._make([*edges, *_node_features(graph, starts, places)])


def _node_features(graph: NeuralGraph, starts: list[int], places: GraphValues) -> tuple[Tensor, Tensor, Tensor]:
    width = max((bias_slots(bias) for bias in graph.biases), default=0)
    none = torch.empty(0, dtype=torch.long)
    nodes, parameters, elements = [none], [none.reshape(0, width)], [none.reshape(0, width)]
    for bias, index in zip(graph.biases, places.biases, strict=True):
        n, slots = index.shape
        nodes.append(starts[bias.group] + _neurons(bias.index, graph.groups[bias.group].size))
        element = torch.full((n, width), -1)
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
    return torch.arange(size) if index is None else torch.tensor(index)


def summary(graph: NeuralGraph) -> str:
    """See `NeuralGraph.summary`."""
    header = ("", "group", "nodes", "from", "edges and biases", "slots", "elements", "activation", "role")
    entries = _entries(graph)
    rows = [header, *(_row(graph, [entries[i] for i in run]) for run in runs(graph))]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if h in NUMBERS else c.ljust(w) for h, c, w in zip(header, row, widths, strict=True))
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), *_coverage(graph)])


class Entry(NamedTuple):
    """A group with its position, the blocks that lead into it and its biases."""

    number: int
    group: NeuronGroup
    blocks: list[EdgeBlock]
    biases: list[Bias]


def _entries(graph: NeuralGraph) -> list[Entry]:
    entries = [Entry(i, group, [], []) for i, group in enumerate(graph.groups)]
    for block in graph.blocks:
        entries[block.target].blocks.append(block)
    for bias in graph.biases:
        entries[bias.group].biases.append(bias)
    return entries


def runs(graph: NeuralGraph) -> list[list[int]]:
    """The groups in order, the pieces of a norm over concatenated groups together, each other group alone."""

    def same(entry: Entry) -> tuple:
        kinds = [bias.kind for bias in entry.biases]
        pieces = bool(entry.blocks) and all(block.view and is_diagonal(block) for block in entry.blocks)
        return entry.group.name, entry.group.role, entry.group.activation, kinds, pieces or entry.number

    return [[entry.number for entry in run] for _, run in groupby(_entries(graph), key=same)]


def _row(graph: NeuralGraph, entries: list[Entry]) -> tuple[str, ...]:
    number, group = entries[0][:2]
    blocks = [block for entry in entries for block in entry.blocks]
    biases = [bias for entry in entries for bias in entry.biases]
    sources = sorted({block.source for block in blocks})
    slots = list(dict.fromkeys(slot_text(block) for block in blocks if block.view))
    return (
        f"{number}-{entries[-1].number}" if len(entries) > 1 else f"{number}",
        shorten(group.name, NAME_WIDTH),
        f"{sum(entry.group.size for entry in entries):,}",
        ", ".join(map(str, sources)) if len(sources) <= LISTED else f"{len(sources)} groups",
        " + ".join([*incoming(blocks), *counted([bias.kind for bias in biases])]),
        ", ".join(slots) if len(slots) <= LISTED else f"{len(slots)} shapes",
        f"{sum(place.view.numel for place in (*blocks, *biases) if place.view):,}",
        group.activation or "",
        group.role,
    )


def incoming(blocks: Sequence[EdgeBlock]) -> list[str]:
    """The blocks into a group in words: sizes of weights, kinds of edges of value 1."""
    weights = [block for block in blocks if block.view]
    found = counted([_sizes(block) for block in weights])
    if len(found) > LISTED:
        sources = sum(b.shape[0] * b.shape[2] for b in weights)
        targets = max(b.shape[0] * b.shape[1] for b in weights)
        found = [f"{len(weights)} blocks: {sources} -> {targets}"]
    return found + counted([block.kind for block in blocks if not block.view])


def _sizes(block: EdgeBlock) -> str:
    groups, targets, sources = block.shape
    if is_diagonal(block):
        return "one to one"
    return f"{sources} -> {targets}" if groups == 1 else f"{groups} groups of {sources} -> {targets}"


def is_diagonal(block: EdgeBlock) -> bool:
    """Whether every target has one source of its own, as with the scale of a norm."""
    return block.shape[0] > 1 and block.shape[1:] == (1, 1)


def slot_text(place: EdgeBlock | Bias) -> str:
    """The slots of an edge or node such as 3x3; 1 for a single one."""
    return "x".join(map(str, place.slot_shape)) or "1"


def counted(words: Sequence[str]) -> list[str]:
    """Each word once, in order, with its number where it comes more often."""
    return [
        word if n == 1 else f"{n} x ({word})" if " -> " in word else f"{n} x {word}"
        for word, n in Counter(words).items()
    ]


def shorten(name: str, width: int) -> str:
    """A name of at most so many characters: the end of it, which begins with a whole part unless that is short."""
    if len(name) <= width:
        return name
    end = name[3 - width :]
    whole = end.partition(".")[2]
    return "..." + (whole if len(whole) > width / 2 else end)


def _coverage(graph: NeuralGraph) -> list[str]:
    connected = {b.source for b in graph.blocks} | {b.target for b in graph.blocks}
    alone = sum(b.view.numel for b in graph.biases if b.group not in connected)
    count = len(set(components(graph)))
    lines = [
        f"{sum(g.size for g in graph.groups):,} nodes in {len(graph.groups)} groups, {graph.numel:,} parameter "
        f"elements in {len(graph.weights)} blocks and {len(graph.biases)} biases; {count} "
        f"component{'s' if count != 1 else ''}, {alone:,} elements unconnected"
    ]
    if graph.unplaced:
        lines.append(f"no rule for: {', '.join(graph.unplaced)}")
    return lines
