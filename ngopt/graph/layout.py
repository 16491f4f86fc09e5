"""Where the groups and blocks of a neural graph go on a drawing.

Groups are boxes in columns, from left to right by depth. Where there are many columns they continue
on the next row, like text. Arrows between neighbouring columns are direct; those that skip columns
run in *lanes* over the boxes of a row, those that lead back in lanes below them. Lengths are
inches, x grows to the right from 0, y upwards to 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from ngopt.graph.core import NeuralGraph, NeuronGroup
from ngopt.graph.pieces import is_diagonal
from ngopt.graph.summary import runs
from ngopt.graph.topology import components

BOX_WIDTH, BOX_HEIGHT = 1.42, 0.72
GAP_WIDTH, GAP_HEIGHT = 0.5, 0.32  # between boxes
LANE = 0.12  # between lanes
CLEARANCE = 0.15  # between boxes and the nearest lane, and a lane more
LOOP = 0.12  # between a box and a wire that leads back to it
NOTE_WIDTH = 0.95  # room for words where an arrow goes on in another row
MARGIN = 0.25
COLUMNS = 8  # at most so many in a row
STACK = 4  # groups without edges, at most so many in a column

Point = tuple[float, float]


class Wire(NamedTuple):
    """An arrow: all blocks of one style from one group to another.

    style: "weight", "one to one" for weights with one edge a neuron,
    or the kind of edges of value 1.
    """

    source: int
    target: int
    style: str
    blocks: tuple[int, ...]


class Note(NamedTuple):
    """Where wires leave a row for another, or one comes from it; `right` says at which margin."""

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
    grid = _Grid(wires, column, starts, _heights(graph, wires, column))
    pieces = [grid.route(i) for i in range(len(wires))]
    notes = _notes(grid, pieces)
    width = max(map(grid.right, range(len(starts)))) + MARGIN
    if notes:
        width += NOTE_WIDTH
    centers = [grid.center(group) for group in range(len(graph.groups))]
    return Layout(centers, wires, pieces, notes, width, grid.height)


def _notes(grid: _Grid, pieces: Sequence[Sequence[Sequence[Point]]]) -> list[Note]:
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
    """The column of every group, counted through all rows, and the first column of every row."""
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
            {group: k // STACK for k, group in enumerate(alone)}, column, starts, used
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


def _lanes(wires: Sequence[Wire], column: Sequence[int]) -> dict[int, int]:
    """Wires that skip columns or lead back -> lane: 1, 2, ... over the boxes, -1, -2, ...
    below; short ones nearest.

    Wires of one style from one group share a lane.
    """
    nets: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    gaps: dict[tuple[int, str, int], set[int]] = {}
    for i, wire in enumerate(wires):
        start, end = column[wire.source], column[wire.target] - 1  # first and last gap
        if start == end or wire.source == wire.target:
            continue
        net = (wire.source, wire.style, 1 if end > start else -1)
        nets[net].append(i)
        ends = {start, end} | gaps.get(net, set())
        gaps[net] = set(range(min(ends), max(ends) + 1))
    taken: dict[int, set[int]] = defaultdict(set)
    found = {}
    for net in sorted(nets, key=lambda net: len(gaps[net])):
        lane = side = net[2]
        while taken[lane] & gaps[net]:
            lane += side
        taken[lane] |= gaps[net]
        found |= dict.fromkeys(nets[net], lane)
    return found


class _Grid:
    """Coordinates of boxes and wires."""

    def __init__(
        self,
        wires: Sequence[Wire],
        column: Sequence[int],
        starts: Sequence[int],
        offset: Sequence[float],
    ):
        """column, offset: of every group, the latter over the middle of its row, in boxes.
        starts: see `columns`."""
        self.wires = wires
        self.column = column
        self.starts = starts
        self.offset = offset
        self.lane = _lanes(wires, column)
        self.out: dict[int, list[int]] = defaultdict(list)
        self.into: dict[int, list[int]] = defaultdict(list)
        # (gap, whether behind a source) -> lines
        self.turns: dict[tuple[int, bool], list] = defaultdict(list)
        for i, wire in enumerate(wires):
            self.out[wire.source].append(i)
            self.into[wire.target].append(i)
        # the farthest lanes turn next to the box
        for i in sorted(self.lane, key=lambda i: -abs(self.lane[i])):
            for leaves in (True, False):
                lines = self.turns[self.gap(i, leaves), leaves]
                if self.line(i, leaves) not in lines:
                    lines.append(self.line(i, leaves))
        self._place_rows()

    def _place_rows(self) -> None:
        """y of the middle of every row and of its lanes, and the height of all."""
        boxes: dict[int, float] = defaultdict(float)
        lanes: dict[int, set[int]] = defaultdict(set)
        for group, offset in enumerate(self.offset):
            row = self.row(self.column[group])
            boxes[row] = max(boxes[row], offset)
        for i, lane in self.lane.items():
            for row in self.rows_of(i):
                lanes[row].add(lane)
        self.middle: list[float] = []
        self.lane_y: dict[tuple[int, int], float] = {}  # row, lane
        y = -GAP_HEIGHT / 2
        for row in range(len(self.starts)):
            half = boxes[row] * (BOX_HEIGHT + GAP_HEIGHT) + BOX_HEIGHT / 2
            y = self._place_lanes(row, [lane for lane in lanes[row] if lane > 0], y)
            y -= CLEARANCE + half
            self.middle.append(y)
            y -= CLEARANCE + half
            y = self._place_lanes(row, [lane for lane in lanes[row] if lane < 0], y)
        self.height = -y

    def _place_lanes(self, row: int, lanes: Sequence[int], y: float) -> float:
        """Puts lanes below y, from the highest to the lowest; returns where they end."""
        for lane in sorted(lanes, reverse=True):
            y -= LANE
            self.lane_y[row, lane] = y
        return y

    def row(self, column: int) -> int:
        return bisect_right(self.starts, column) - 1

    def rows_of(self, wire: int) -> range:
        """The rows that a wire goes through, in its direction."""
        start, end = (self.row(self.column[group]) for group in self.wires[wire][:2])
        return range(start, end + 1) if end >= start else range(start, end - 1, -1)

    def left(self) -> float:
        """x where all rows begin."""
        return MARGIN + (NOTE_WIDTH if len(self.starts) > 1 else 0)

    def right(self, row: int) -> float:
        """x where a row ends."""
        size = [*self.starts, max(self.column) + 1][row + 1] - self.starts[row]
        return self.left() + GAP_WIDTH + size * (BOX_WIDTH + GAP_WIDTH)

    def center(self, group: int) -> Point:
        row = self.row(self.column[group])
        x = (self.column[group] - self.starts[row] + 1) * (
            BOX_WIDTH + GAP_WIDTH
        ) - BOX_WIDTH / 2
        return self.left() + x, self.middle[row] + self.offset[group] * (
            BOX_HEIGHT + GAP_HEIGHT
        )

    def side(self, wire: int) -> int:
        """1 if a wire goes over boxes (its own if it leads back to it), -1 if below,
        0 if it is direct."""
        lane = self.lane.get(wire, 0)
        if lane > 0 or self.wires[wire].source == self.wires[wire].target:
            return 1
        return -1 if lane < 0 else 0

    def box(self, wire: int, leaves: bool) -> int:
        """The group that a wire leaves, or leads to."""
        return self.wires[wire].source if leaves else self.wires[wire].target

    def gap(self, wire: int, leaves: bool) -> int:
        """The gap between columns that a wire leaves its source through, or comes to its target."""
        column = self.column[self.box(wire, leaves)]
        return column if leaves else column - 1

    def line(self, wire: int, leaves: bool) -> tuple:
        """Equal for wires that are one line where they leave their source: those in one lane."""
        lane = self.lane.get(wire)
        return (
            (wire,) if lane is None or not leaves else (self.wires[wire].source, lane)
        )

    def port(self, wire: int, leaves: bool) -> Point:
        """Where a wire touches the box of its source or target: lanes far from the middle,
        direct ones near it."""
        group = self.box(wire, leaves)
        side = self.side(wire)
        wires = self.out[group] if leaves else self.into[group]
        beside = [i for i in wires if self.side(i) == side]
        if side:
            beside.sort(key=lambda i: abs(self.lane.get(i, 0)))
        else:  # in the order of the boxes at their other ends
            beside.sort(key=lambda i: (-self.offset[self.box(i, not leaves)], i))
        lines = list(dict.fromkeys(self.line(i, leaves) for i in beside))
        part = (lines.index(self.line(wire, leaves)) + 1) / (len(lines) + 1)
        if side:
            height = side * (0.25 + 0.2 * part)
        else:
            reach = 0.4 if len(beside) == len(wires) else 0.22
            height = reach * (1 - 2 * part)
        x, y = self.center(group)
        half = BOX_WIDTH / 2
        return x + (half if leaves else -half), y + BOX_HEIGHT * height

    def turn(self, wire: int, leaves: bool) -> float:
        """x of the vertical line between a wire's lane and the box of its source or target."""
        gap = self.gap(wire, leaves)
        lines = len(self.turns[gap, False]) + len(self.turns[gap, True])
        place = self.turns[gap, leaves].index(self.line(wire, leaves)) + 1
        distance = GAP_WIDTH * place / (lines + 1)
        x, _ = self.port(wire, leaves)
        return x + (distance if leaves else -distance)

    def route(self, wire: int) -> list[list[Point]]:
        """The lines of a wire, one for each row that it goes through."""
        group = self.wires[wire].source
        if group == self.wires[wire].target:
            _, y = self.center(group)
            top = y + BOX_HEIGHT / 2 + LOOP
            return [_loop(self.port(wire, True), self.port(wire, False), top)]
        rows = self.rows_of(wire)
        found = []
        for row in rows:
            first = self._at_box if row == rows[0] else self._at_margin
            last = self._at_box if row == rows[-1] else self._at_margin
            found.append(first(wire, row, False) + last(wire, row, True)[::-1])
        return found

    def _at_box(self, wire: int, row: int, ends: bool) -> list[Point]:
        """From the box where a wire begins, or ends, to its lane in a row, if it has one."""
        x, y = self.port(wire, not ends)
        if wire not in self.lane:
            return [(x, y)]
        turn = self.turn(wire, not ends)
        return [(x, y), (turn, y), (turn, self.lane_y[row, self.lane[wire]])]

    def _at_margin(self, wire: int, row: int, ends: bool) -> list[Point]:
        """Where a wire comes from another row, or goes on there as a row ends."""
        forward = self.side(wire) >= 0
        x = self.right(row) if forward == ends else self.left()
        if wire in self.lane:
            return [(x, self.lane_y[row, self.lane[wire]])]
        _, y = self.port(wire, ends)
        return [(x, y)]


def _loop(start: Point, end: Point, y: float) -> list[Point]:
    """From the right side of a box over it to its left side."""
    right, left = start[0] + LOOP, end[0] - LOOP
    return [start, (right, start[1]), (right, y), (left, y), (left, end[1]), end]
