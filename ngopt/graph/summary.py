"""A table of what a neural graph sees, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from ngopt.graph.connectivity import connected
from ngopt.graph.groups_and_blocks import (
    Bias,
    EdgeBlock,
    NeuronGroup,
    Topology,
    is_diagonal,
)

NAME_WIDTH = 50  # characters of a group's name in the table
LISTED = 3  # as many blocks or sources of a group are listed, of more only their number is given
NUMBERS = ("", "nodes", "elements")  # columns that end at their right


def summary(graph: Topology) -> str:
    """See `NeuralGraph.summary`."""
    header = (
        "",
        "group",
        "nodes",
        "from",
        "edges and biases",
        "slots",
        "elements",
        "activation",
        "role",
    )
    entries = _entries(graph)
    rows = [
        header,
        *(_row(graph, [entries[i] for i in run]) for run in runs(graph)),
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    lines = [
        "  ".join(
            c.rjust(w) if h in NUMBERS else c.ljust(w)
            for h, c, w in zip(header, row, widths, strict=True)
        )
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), *_coverage(graph)])


class Entry(NamedTuple):
    """A group with its position, the blocks that lead into it and its biases."""

    number: int
    group: NeuronGroup
    blocks: list[EdgeBlock]
    biases: list[Bias]


def _entries(graph: Topology) -> list[Entry]:
    entries = [Entry(i, group, [], []) for i, group in enumerate(graph.groups)]
    for block in graph.blocks:
        entries[block.target].blocks.append(block)
    for bias in graph.biases:
        entries[bias.group].biases.append(bias)
    return entries


def runs(graph: Topology) -> list[list[int]]:
    """The groups in order, the pieces of a norm over concatenated groups together,
    each other group alone."""

    def same(entry: Entry) -> tuple:
        kinds = [bias.kind for bias in entry.biases]
        pieces = bool(entry.blocks) and all(
            block.view and is_diagonal(block) for block in entry.blocks
        )
        group = entry.group
        return (
            group.name,
            _role(group),
            group.activation,
            kinds,
            pieces or entry.number,
        )

    return [
        [entry.number for entry in run] for _, run in groupby(_entries(graph), key=same)
    ]


def _row(graph: Topology, entries: list[Entry]) -> tuple[str, ...]:
    number, group = entries[0][:2]
    blocks = [block for entry in entries for block in entry.blocks]
    biases = [bias for entry in entries for bias in entry.biases]
    sources = sorted({block.source for block in blocks})
    slots = list(dict.fromkeys(slot_text(block) for block in blocks if block.view))
    return (
        f"{number}-{entries[-1].number}" if len(entries) > 1 else f"{number}",
        shorten(group.name, NAME_WIDTH),
        f"{sum(entry.group.size for entry in entries):,}",
        ", ".join(map(str, sources))
        if len(sources) <= LISTED
        else f"{len(sources)} groups",
        " + ".join([*incoming(blocks), *counted([bias.kind for bias in biases])]),
        ", ".join(slots) if len(slots) <= LISTED else f"{len(slots)} shapes",
        f"{sum(place.view.numel for place in (*blocks, *biases) if place.view):,}",
        group.activation or "",
        _role(group),
    )


def _role(group: NeuronGroup) -> str:
    return f"{group.role}, pinned" if group.is_pinned else group.role


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
    return (
        f"{sources} -> {targets}"
        if groups == 1
        else f"{groups} groups of {sources} -> {targets}"
    )


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
    """A name of at most so many characters: the end of it,
    which begins with a whole part unless that is short."""
    if len(name) <= width:
        return name
    end = name[3 - width :]
    whole = end.partition(".")[2]
    return "..." + (whole if len(whole) > width / 2 else end)


def _coverage(graph: Topology) -> list[str]:
    touched = {b.source for b in graph.blocks} | {b.target for b in graph.blocks}
    alone = sum(b.view.numel for b in graph.biases if b.group not in touched)
    count = len(set(connected(len(graph.groups), graph.blocks)))
    lines = [
        f"{sum(g.size for g in graph.groups):,} nodes in {len(graph.groups)} groups, "
        f"{graph.numel:,} parameter "
        f"elements in {len(graph.weights)} blocks and {len(graph.biases)} biases; {count} "
        f"component{'s' if count != 1 else ''}, {alone:,} elements unconnected"
    ]
    if graph.unplaced:
        lines.append(f"no rule for: {', '.join(graph.unplaced)}")
    return lines
