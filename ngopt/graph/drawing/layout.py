"""Where the groups and blocks of a neural graph go on a drawing.

Groups are boxes in columns, from left to right by depth. Where there are many columns
they continue on the next row, like text. The grid says where that is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from ngopt.graph.connectivity import components
from ngopt.graph.drawing.grid import MARGIN, NOTE_WIDTH, Grid, Point, Wire
from ngopt.graph.groups_and_blocks import NeuronGroup, is_diagonal
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.summary import runs

COLUMNS = 8  # at most so many in a row
STACK = 4  # groups without edges, at most so many in a column


class Note(NamedTuple):
    """Where wires leave a row for another, or one comes from it; `right` says at which
    margin."""

    place: Point
    leaves: bool
    right: bool
    wires: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """centers: of the box of every group. pieces: the lines of every wire,
    one for each row that it is in."""

    centers: list[Point]
    wires: list[Wire]
    pieces: list[list[list[Point]]]
    notes: list[Note]
    width: float
    height: float


def arrange(graph: NeuralGraph) -> Layout:
    """The whole drawing but for colours and words."""
    wires = wires_of(graph)
    column, starts = columns(graph, wires)
    grid = Grid(wires, column, starts, _heights(graph, wires, column))
    pieces = [grid.route(i) for i in range(len(wires))]
    notes = _notes(grid, pieces)
    width = max(map(grid.right, range(len(starts)))) + MARGIN
    if notes:
        width += NOTE_WIDTH
    centers = [grid.center(group) for group in range(len(graph.groups))]
    return Layout(centers, wires, pieces, notes, width, grid.height)


def _notes(grid: Grid, pieces: Sequence[Sequence[Sequence[Point]]]) -> list[Note]:
    """pieces: of every wire; where it goes on in another row, a note at both ends."""
    cuts: dict[tuple[Point, bool, bool], list[int]] = defaultdict(list)
    for i, lines in enumerate(pieces):
        forward = grid.side(i) >= 0
        for before, after in pairwise(lines):
            cuts[before[-1], True, forward].append(i)
            cuts[after[0], False, not forward].append(i)
    return [Note(*cut, tuple(members)) for cut, members in cuts.items()]


def condense(graph: NeuralGraph) -> NeuralGraph:
    """The graph with the pieces of a norm over concatenated groups as one group;
    its blocks and biases are the same.

    Only for drawing: which neurons of a group its blocks connect is no longer right.
    """
    parts = runs(graph)
    number = {group: k for k, part in enumerate(parts) for group in part}
    groups = []
    for part in parts:
        members = [graph.groups[i] for i in part]
        groups.append(_one_group(members))
    blocks = (
        replace(b, source=number[b.source], target=number[b.target])
        for b in graph.blocks
    )
    biases = (replace(b, group=number[b.group]) for b in graph.biases)
    return replace(
        graph, groups=tuple(groups), blocks=tuple(blocks), biases=tuple(biases)
    )


def _one_group(members: Sequence[NeuronGroup]) -> NeuronGroup:
    size = sum(group.size for group in members)
    depth = max(group.depth for group in members)
    return replace(members[0], size=size, depth=depth)


def wires_of(graph: NeuralGraph) -> list[Wire]:
    blocks: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for i, block in enumerate(graph.blocks):
        style = "one to one" if block.view and is_diagonal(block) else block.kind
        blocks[block.source, block.target, style].append(i)
    return [Wire(*ends, tuple(members)) for ends, members in blocks.items()]


def columns(graph: NeuralGraph, wires: Sequence[Wire]) -> tuple[list[int], list[int]]:
    """The column of every group, counted through all rows, and the first column of
    every row."""
    touched = {group for wire in wires for group in wire[:2]}
    parts: dict[int, list[int]] = defaultdict(list)
    alone = []
    for group, part in enumerate(components(graph)):
        if group in touched:
            parts[part].append(group)
        else:
            alone.append(group)
    column, starts, used = [0] * len(graph.groups), [0], 0
    for members in parts.values():
        used = _add_part(_levels(graph, wires, members), column, starts, used)
    if alone:
        _add_part(
            {group: k // STACK for k, group in enumerate(alone)},
            column,
            starts,
            used,
        )
    return column, starts


def _levels(
    graph: NeuralGraph, wires: Sequence[Wire], members: Sequence[int]
) -> dict[int, int]:
    """How many edges the longest path to a group has;
    inputs stand directly before what they lead to."""
    depths = sorted({graph.groups[group].depth for group in members})
    level = {group: depths.index(graph.groups[group].depth) for group in members}
    first: dict[int, int] = {}
    for wire in wires:
        if wire.source in level:
            first[wire.source] = min(
                first.get(wire.source, len(depths)), level[wire.target]
            )
    return level | {
        g: max(first[g] - 1, 0) for g in members if level[g] == 0 and g in first
    }


def _add_part(
    level: dict[int, int], column: list[int], starts: list[int], used: int
) -> int:
    """Puts a component behind the columns that are used, in the same row if it fits;
    returns how many are used then."""
    size = max(level.values()) + 1
    if used > starts[-1] and used + size > starts[-1] + COLUMNS:
        starts.append(used)
    rows = ceil((used + size - starts[-1]) / COLUMNS)
    starts += [used + ceil(size * r / rows) for r in range(1, rows)]
    for group, k in level.items():
        column[group] = used + k
    return used + size


def _heights(
    graph: NeuralGraph, wires: Sequence[Wire], column: Sequence[int]
) -> list[float]:
    """For every group its height over the middle of its column, in boxes:
    near the groups it is connected to."""
    stacks: dict[int, list[int]] = defaultdict(list)
    for group in range(len(graph.groups)):
        stacks[column[group]].append(group)
    near = _neighbours(wires, column)
    height = [0.0] * len(graph.groups)

    def key(group: int) -> tuple[float, float]:
        """From top to bottom; of equals those with long edges come first,
        whose lanes are over the boxes."""
        heights = [height[n] for n in near[group]]
        reach = max((column[n] for n in near[group]), default=0)
        return -sum(heights) / max(len(heights), 1), -reach

    for order in (sorted(stacks), sorted(stacks), sorted(stacks, reverse=True)):
        for stack in (stacks[c] for c in order):
            stack.sort(key=key)
            for k, group in enumerate(stack):
                height[group] = (len(stack) - 1) / 2 - k
    return height


def _neighbours(wires: Sequence[Wire], column: Sequence[int]) -> dict[int, list[int]]:
    """The groups in other columns that each has wires with, one for each wire."""
    near: dict[int, list[int]] = defaultdict(list)
    for wire in wires:
        if column[wire.source] != column[wire.target]:
            near[wire.source].append(wire.target)
            near[wire.target].append(wire.source)
    return near
