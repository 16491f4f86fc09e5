"""Where the groups and blocks of a neural graph are on a drawing.

Groups are boxes in columns, from left to right by depth. Long networks continue on the
next row, like text. `Grid` computes the coordinates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from ngopt.graph.connectivity import components
from ngopt.graph.drawing.grid import MARGIN, NOTE_WIDTH, Grid, Point, Wire
from ngopt.graph.groups_and_blocks import is_diagonal
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.summary import runs
from ngopt.graph.transforms import renumbered

COLUMNS = 8  # maximum in a row
STACK = 4  # maximum of groups without edges in a column


class Continuation(NamedTuple):
    """Where wires end at a margin and continue in another row (`leaves`), or one comes
    from another row."""

    place: Point
    leaves: bool
    at_right: bool
    wires: tuple[int, ...]


@dataclass(frozen=True)
class DrawingLayout:
    """centers: of the box of every group. lines: for every wire, one line in each of
    its rows."""

    centers: list[Point]
    wires: list[Wire]
    lines: list[list[list[Point]]]
    continuations: list[Continuation]
    width: float
    height: float


@dataclass(frozen=True)
class Columns:
    """The column of every group, counted through all rows, and the first column of
    every row."""

    of_groups: list[int]
    row_starts: list[int]

    def add_component(self, levels: dict[int, int]) -> None:
        """Puts groups into the next columns, in the same row if they fit.

        levels: the column of each group, counted from the first new one.
        """
        used = max(self.of_groups) + 1
        size = max(levels.values()) + 1
        starts = self.row_starts
        if used > starts[-1] and used + size > starts[-1] + COLUMNS:
            starts.append(used)
        rows = ceil((used + size - starts[-1]) / COLUMNS)
        for row in range(1, rows):
            starts.append(used + ceil(size * row / rows))
        for group, level in levels.items():
            self.of_groups[group] = used + level


def arrange(graph: NeuralGraph) -> DrawingLayout:
    """Places and sizes of everything in the drawing."""
    wires = _wires(graph)
    columns = _columns(graph, wires)
    heights = _heights(wires, columns.of_groups)
    grid = Grid(wires, columns.of_groups, columns.row_starts, heights)
    lines = list(map(grid.route, range(len(wires))))
    continuations = _continuations(grid, lines)
    width = max(map(grid.right, range(len(columns.row_starts)))) + MARGIN
    if continuations:
        width += NOTE_WIDTH
    centers = list(map(grid.center, range(len(graph.groups))))
    return DrawingLayout(centers, wires, lines, continuations, width, grid.height)


def _continuations(
    grid: Grid, lines: Sequence[Sequence[Sequence[Point]]]
) -> list[Continuation]:
    """lines: see `DrawingLayout`."""
    cuts: dict[tuple[Point, bool, bool], list[int]] = defaultdict(list)
    for wire, in_rows in enumerate(lines):
        forward = grid.side(wire) >= 0
        for before, after in pairwise(in_rows):
            cuts[before[-1], True, forward].append(wire)
            cuts[after[0], False, not forward].append(wire)
    return [Continuation(*cut, tuple(wires)) for cut, wires in cuts.items()]


def condense(graph: NeuralGraph) -> NeuralGraph:
    """The graph with the pieces of a norm over concatenated groups as one group.

    Only for drawing: indices of blocks and biases stay those of the pieces.
    """
    new = [0] * len(graph.groups)  # numbers
    groups = []
    for run in runs(graph):
        size, depth = 0, 0.0
        for old in run:
            new[old] = len(groups)
            size += graph.groups[old].size
            depth = max(depth, graph.groups[old].depth)
        groups.append(replace(graph.groups[run[0]], size=size, depth=depth))
    parameters = range(len(graph.parameters))
    return replace(renumbered(graph, parameters, new), groups=tuple(groups))


def _wires(graph: NeuralGraph) -> list[Wire]:
    blocks_of: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for number, block in enumerate(graph.blocks):
        style = "one to one" if block.view and is_diagonal(block) else block.kind
        blocks_of[block.source, block.target, style].append(number)
    return [Wire(*key, tuple(blocks)) for key, blocks in blocks_of.items()]


def _columns(graph: NeuralGraph, wires: Sequence[Wire]) -> Columns:
    """Component after component; groups without edges come last."""
    connected = set()
    for wire in wires:
        connected |= {wire.source, wire.target}
    members: dict[int, list[int]] = defaultdict(list)
    alone: dict[int, int] = {}
    for group, component in enumerate(components(graph)):
        if group in connected:
            members[component].append(group)
        else:
            alone[group] = len(alone) // STACK
    columns = Columns([-1] * len(graph.groups), [0])
    for groups in members.values():
        columns.add_component(_levels(graph, wires, groups))
    if alone:
        columns.add_component(alone)
    return columns


def _levels(
    graph: NeuralGraph, wires: Sequence[Wire], groups: Sequence[int]
) -> dict[int, int]:
    """The column of each group of a component by its depth; inputs stand directly
    before the first group that they lead to."""
    depth = {group: graph.groups[group].depth for group in groups}
    depths = sorted(set(depth.values()))
    levels = {group: depths.index(depth[group]) for group in groups}
    first_target: dict[int, int] = {}
    for wire in wires:
        if wire.source in levels:
            level = levels[wire.target]
            level = min(level, first_target.get(wire.source, len(depths)))
            first_target[wire.source] = level
    moved = {}
    for group, level in first_target.items():
        if levels[group] == 0:
            moved[group] = max(level - 1, 0)
    return levels | moved


def _heights(wires: Sequence[Wire], column: Sequence[int]) -> list[float]:
    """For every group its height over the middle of its column, in boxes: near its
    neighbours."""
    stacks: dict[int, list[int]] = defaultdict(list)
    for group, own in enumerate(column):
        stacks[own].append(group)
    neighbours = _neighbours(wires, column)
    heights = [0.0] * len(column)

    def key(group: int) -> tuple[float, float]:
        """From top to bottom. Of equals those with long edges come first, as their
        lanes are over the boxes."""
        near = neighbours[group]
        total = sum(heights[n] for n in near)
        reach = max((column[n] for n in near), default=0)
        return -total / max(len(near), 1), -reach

    forward = sorted(stacks)
    for number in (*forward, *forward, *reversed(forward)):
        stack = stacks[number]
        stack.sort(key=key)
        for k, group in enumerate(stack):
            heights[group] = (len(stack) - 1) / 2 - k
    return heights


def _neighbours(wires: Iterable[Wire], column: Sequence[int]) -> dict[int, list[int]]:
    """For each group the groups in other columns at the other ends of its wires."""
    near: dict[int, list[int]] = defaultdict(list)
    for wire in wires:
        if column[wire.source] != column[wire.target]:
            near[wire.source].append(wire.target)
            near[wire.target].append(wire.source)
    return near
