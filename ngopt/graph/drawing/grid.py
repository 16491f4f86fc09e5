"""Coordinates of the boxes and wires of a drawing, once their columns and heights are
known.

Lengths are inches, x grows to the right from 0, y upwards to 0. Arrows between
neighbouring columns are direct; those that skip columns run in *lanes* over the boxes
of a row, those that lead back in lanes below them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

BOX_WIDTH, BOX_HEIGHT = 1.42, 0.72
GAP_WIDTH, GAP_HEIGHT = 0.5, 0.32  # between boxes
LANE = 0.12  # between lanes
CLEARANCE = 0.15  # between boxes and the nearest lane, and a lane more
LOOP = 0.12  # between a box and a wire that leads back to it
NOTE_WIDTH = 0.95  # room for words where an arrow goes on in another row
MARGIN = 0.25

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


def _lanes(wires: Sequence[Wire], column: Sequence[int]) -> dict[int, int]:
    """Wires that skip columns or lead back -> lane: 1, 2, ... over the boxes, -1, -2,
    ... below; short ones nearest.

    Wires of one style from one group share a lane.
    """
    nets: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    gaps: dict[tuple[int, str, int], set[int]] = {}
    for i, wire in enumerate(wires):
        start, end = (
            column[wire.source],
            column[wire.target] - 1,
        )  # first and last gap
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


class Grid:
    """Coordinates of boxes and wires."""

    def __init__(
        self,
        wires: Sequence[Wire],
        column: Sequence[int],
        starts: Sequence[int],
        offset: Sequence[float],
    ):
        """column, offset: of every group, the latter over the middle of its row, in
        boxes.
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
        place = self.column[group] - self.starts[row]
        x = (place + 0.5) * BOX_WIDTH + (place + 1) * GAP_WIDTH
        up = self.offset[group] * (BOX_HEIGHT + GAP_HEIGHT)
        return self.left() + x, self.middle[row] + up

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
        """The gap between columns that a wire leaves its source through, or comes to
        its target."""
        column = self.column[self.box(wire, leaves)]
        return column if leaves else column - 1

    def line(self, wire: int, leaves: bool) -> tuple:
        """Equal for wires that are one line where they leave their source: those in one
        lane."""
        lane = self.lane.get(wire)
        if lane is None or not leaves:
            return (wire,)
        return self.wires[wire].source, lane

    def port(self, wire: int, leaves: bool) -> Point:
        """Where a wire touches the box of its source or target: lanes far from the
        middle, direct ones near it."""
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
        """x of the vertical line between a wire's lane and the box of its source or
        target."""
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
        """From the box where a wire begins, or ends, to its lane in a row, if it has
        one."""
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
    return [
        start,
        (right, start[1]),
        (right, y),
        (left, y),
        (left, end[1]),
        end,
    ]
