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

from ngopt.graph.core import NeuralGraph
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
    cuts: dict[tuple[Point, bool, bool], list[int]] = defaultdict(list)
    for i, lines in enumerate(pieces):
        forward = grid.side(i) >= 0
        for before, after in pairwise(lines):
            cuts[before[-1], True, forward].append(i)
            cuts[after[0], False, not forward].append(i)
    notes = [Note(*cut, tuple(members)) for cut, members in cuts.items()]
    width = max(grid.right(r) for r in range(len(starts))) + MARGIN + (NOTE_WIDTH if notes else 0)
    return Layout(
        [grid.center(g) for g in range(len(graph.groups))], wires, pieces, notes, width, grid.height
    )


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
        size, depth = sum(group.size for group in members), max(group.depth for group in members)
        groups.append(replace(members[0], size=size, depth=depth))
    blocks = (replace(b, source=number[b.source], target=number[b.target]) for b in graph.blocks)
    biases = (replace(b, group=number[b.group]) for b in graph.biases)
    return replace(graph, groups=tuple(groups), blocks=tuple(blocks), biases=tuple(biases))


def wires_of(graph: NeuralGraph) -> list[Wire]:
    blocks: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for i, block in enumerate(graph.blocks):
        style = "one to one" if block.view and is_diagonal(block) else block.kind
        blocks[block.source, block.target, style].append(i)
    return [Wire(*ends, tuple(members)) for ends, members in blocks.items()]


def columns(graph: NeuralGraph, wires: Sequence[Wire]) -> tuple[list[int], list[int]]:
    """The column of every group, counted through all rows, and the first column of every row."""
    parts: dict[int, list[int]] = defaultdict(list)
    for group, part in enumerate(components(graph)):
        parts[part].append(group)
    touched = {group for wire in wires for group in wire[:2]}
    column, starts, used = [0] * len(graph.groups), [0], 0
    for members in parts.values():
        if not touched.isdisjoint(members):
            used = _add_part(_levels(graph, wires, members), column, starts, used)
    alone = [group for group in range(len(graph.groups)) if group not in touched]
    if alone:
        _add_part({group: k // STACK for k, group in enumerate(alone)}, column, starts, used)
    return column, starts


def _levels(graph: NeuralGraph, wires: Sequence[Wire], members: Sequence[int]) -> dict[int, int]:
    """How many edges the longest path to a group has;
    inputs stand directly before what they lead to."""
    depths = sorted({graph.groups[group].depth for group in members})
    level = {group: depths.index(graph.groups[group].depth) for group in members}
    first: dict[int, int] = {}
    for wire in wires:
        if wire.source in level:
            first[wire.source] = min(first.get(wire.source, len(depths)), level[wire.target])
    return level | {g: max(first[g] - 1, 0) for g in members if level[g] == 0 and g in first}


def _add_part(level: dict[int, int], column: list[int], starts: list[int], used: int) -> int:
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


def _heights(graph: NeuralGraph, wires: Sequence[Wire], column: Sequence[int]) -> list[float]:
    """For every group its height over the middle of its column, in boxes:
    near the groups it is connected to."""
    stacks: dict[int, list[int]] = defaultdict(list)
    for group in range(len(graph.groups)):
        stacks[column[group]].append(group)
    near: dict[int, list[int]] = defaultdict(list)
    for wire in wires:
        if column[wire.source] != column[wire.target]:
            near[wire.source].append(wire.target)
            near[wire.target].append(wire.source)
    reach = [max((column[n] for n in near[group]), default=0) for group in range(len(graph.groups))]
    height = [0.0] * len(graph.groups)

    def key(group: int) -> tuple[float, float]:
        """From top to bottom; of equals those with long edges come first,
        whose lanes are over the boxes."""
        return -sum(height[n] for n in near[group]) / max(len(near[group]), 1), -reach[group]

    for order in (sorted(stacks), sorted(stacks), sorted(stacks, reverse=True)):
        for c in order:
            stacks[c].sort(key=key)
            for k, group in enumerate(stacks[c]):
                height[group] = (len(stacks[c]) - 1) / 2 - k
    return height


def _lanes(wires: Sequence[Wire], column: Sequence[int]) -> dict[int, int]:
    """Wires that skip columns or lead back -> lane: 1, 2, ... over the boxes, -1, -2, ...
    below; short ones nearest.

    Wires of one style from one group share a lane.
    """
    nets: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    spans = {
        i: (column[wire.source], column[wire.target] - 1) for i, wire in enumerate(wires)
    }  # first and last gap
    for i, wire in enumerate(wires):
        start, end = spans[i]
        if start != end and wire.source != wire.target:
            nets[wire.source, wire.style, 1 if end > start else -1].append(i)
    gaps = {}
    for net, members in nets.items():
        ends = [gap for i in members for gap in spans[i]]
        gaps[net] = set(range(min(ends), max(ends) + 1))
    taken: dict[int, set[int]] = defaultdict(set)
    found = {}
    for net in sorted(nets, key=lambda net: len(gaps[net])):
        lane = net[2]
        while taken[lane] & gaps[net]:
            lane += net[2]
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
        self.wires, self.column, self.starts, self.offset = wires, column, starts, offset
        self.lane = _lanes(wires, column)
        self.out: dict[int, list[int]] = defaultdict(list)
        self.into: dict[int, list[int]] = defaultdict(list)
        self.turns: dict[tuple[int, bool], list] = defaultdict(
            list
        )  # (gap, whether behind a source) -> lines
        for i, wire in enumerate(wires):
            self.out[wire.source].append(i)
            self.into[wire.target].append(i)
        for i in sorted(
            self.lane, key=lambda i: -abs(self.lane[i])
        ):  # the farthest lanes turn next to the box
            for gap, leaves in (
                (column[wires[i].source], True),
                (column[wires[i].target] - 1, False),
            ):
                if self.line(i, leaves) not in self.turns[gap, leaves]:
                    self.turns[gap, leaves].append(self.line(i, leaves))
        self._place_rows()

    def _place_rows(self) -> None:
        """y of the middle of every row and of its lanes, and the height of all."""
        boxes, lanes = defaultdict(float), defaultdict(set)
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
            over = sorted(lane for lane in lanes[row] if lane > 0)
            under = sorted((lane for lane in lanes[row] if lane < 0), reverse=True)
            for lane in reversed(over):
                self.lane_y[row, lane] = y = y - LANE
            y -= CLEARANCE + half
            self.middle.append(y)
            y -= CLEARANCE + half
            for lane in under:
                self.lane_y[row, lane] = y = y - LANE
        self.height = -y

    def row(self, column: int) -> int:
        return bisect_right(self.starts, column) - 1

    def rows_of(self, wire: int) -> range:
        """The rows that a wire goes through, in its direction."""
        start = self.row(self.column[self.wires[wire].source])
        end = self.row(self.column[self.wires[wire].target])
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
        x = (self.column[group] - self.starts[row] + 1) * (BOX_WIDTH + GAP_WIDTH) - BOX_WIDTH / 2
        return self.left() + x, self.middle[row] + self.offset[group] * (BOX_HEIGHT + GAP_HEIGHT)

    def side(self, wire: int) -> int:
        """1 if a wire goes over boxes (its own if it leads back to it), -1 if below,
        0 if it is direct."""
        lane = self.lane.get(wire, 0)
        return (
            1
            if lane > 0 or self.wires[wire].source == self.wires[wire].target
            else -1
            if lane < 0
            else 0
        )

    def line(self, wire: int, leaves: bool) -> tuple:
        """Equal for wires that are one line where they leave their source: those in one lane."""
        lane = self.lane.get(wire)
        return (wire,) if lane is None or not leaves else (self.wires[wire].source, lane)

    def port(self, wire: int, leaves: bool) -> Point:
        """Where a wire touches the box of its source or target: lanes far from the middle,
        direct ones near it."""
        group = self.wires[wire].source if leaves else self.wires[wire].target
        wires, side = self.out[group] if leaves else self.into[group], self.side(wire)
        beside = [i for i in wires if self.side(i) == side]
        if side:
            beside.sort(key=lambda i: abs(self.lane.get(i, 0)))
        else:
            ends = {i: self.wires[i].target if leaves else self.wires[i].source for i in beside}
            beside.sort(key=lambda i: (-self.offset[ends[i]], i))
        lines = list(dict.fromkeys(self.line(i, leaves) for i in beside))
        part = (lines.index(self.line(wire, leaves)) + 1) / (len(lines) + 1)
        reach = 0.4 if len(beside) == len(wires) else 0.22
        x, y = self.center(group)
        y += BOX_HEIGHT * (side * (0.25 + 0.2 * part) if side else reach * (1 - 2 * part))
        return x + (BOX_WIDTH / 2 if leaves else -BOX_WIDTH / 2), y

    def turn(self, wire: int, leaves: bool) -> float:
        """x of the vertical line between a wire's lane and the box of its source or target."""
        gap = (
            self.column[self.wires[wire].source]
            if leaves
            else self.column[self.wires[wire].target] - 1
        )
        lines = len(self.turns[gap, False]) + len(self.turns[gap, True])
        distance = (
            GAP_WIDTH * (self.turns[gap, leaves].index(self.line(wire, leaves)) + 1) / (lines + 1)
        )
        return self.port(wire, leaves)[0] + (distance if leaves else -distance)

    def route(self, wire: int) -> list[list[Point]]:
        """The lines of a wire, one for each row that it goes through."""
        start, end, rows = self.port(wire, True), self.port(wire, False), self.rows_of(wire)
        if self.wires[wire].source == self.wires[wire].target:
            return [
                _loop(start, end, self.center(self.wires[wire].source)[1] + BOX_HEIGHT / 2 + LOOP)
            ]
        lane = self.lane.get(wire)
        forward = self.side(wire) >= 0
        found = []
        for row in rows:
            y_in, y_out = (end[1], start[1]) if lane is None else 2 * (self.lane_y[row, lane],)
            if row == rows[0]:
                points = [start]
                if lane is not None:
                    points += [(self.turn(wire, True), y) for y in (start[1], y_out)]
            else:
                points = [(self.left() if forward else self.right(row), y_in)]
            if row == rows[-1]:
                if lane is not None:
                    points += [(self.turn(wire, False), y) for y in (y_in, end[1])]
                points.append(end)
            else:
                points.append((self.right(row) if forward else self.left(), y_out))
            found.append(points)
        return found


def _loop(start: Point, end: Point, y: float) -> list[Point]:
    """From the right side of a box over it to its left side."""
    right, left = start[0] + LOOP, end[0] - LOOP
    return [start, (right, start[1]), (right, y), (left, y), (left, end[1]), end]
