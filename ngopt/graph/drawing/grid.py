"""Coordinates of the boxes and wires of a drawing, from columns and heights of groups.

Lengths are inches, x grows to the right from 0, y upwards to 0. Wires between
neighbouring columns are direct. Those that skip columns run in *lanes* over the boxes
of a row, those that lead back in lanes below them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

BOX_WIDTH, BOX_HEIGHT = 1.42, 0.72
GAP_WIDTH, GAP_HEIGHT = 0.5, 0.32  # between boxes
LANE = 0.12  # between lanes
CLEARANCE = 0.15  # between boxes and the nearest lane, less the distance of lanes
LOOP = 0.12  # between a box and a wire that leads back to it
NOTE_WIDTH = 0.95  # words where a wire continues in another row
MARGIN = 0.25

Point = tuple[float, float]


class Wire(NamedTuple):
    """An arrow: all blocks of one style from one group to another.

    style: "weight", "one to one" for weights with one edge per neuron, or the kind of
        edges of value 1.
    """

    source: int
    target: int
    style: str
    blocks: tuple[int, ...]


class _Net(NamedTuple):
    """Wires of one style from one group in one direction (1 or -1), which share a
    lane."""

    source: int
    style: str
    direction: int


def _lanes(wires: Sequence[Wire], column: Sequence[int]) -> dict[int, int]:
    """The lane of every wire that skips columns or leads back: 1, 2, ... over the
    boxes, -1, -2, ... below; short ones nearest."""
    nets: dict[_Net, list[int]] = defaultdict(list)
    gaps: dict[_Net, set[int]] = {}  # between columns that a net crosses
    for number, wire in enumerate(wires):
        first_gap = column[wire.source]
        last_gap = column[wire.target] - 1
        if first_gap == last_gap or wire.source == wire.target:
            continue
        net = _Net(wire.source, wire.style, 1 if last_gap > first_gap else -1)
        nets[net].append(number)
        ends = {first_gap, last_gap} | gaps.get(net, set())
        gaps[net] = set(range(min(ends), max(ends) + 1))
    taken: dict[int, set[int]] = defaultdict(set)
    lanes = {}
    for net in sorted(nets, key=lambda net: len(gaps[net])):
        lane = net.direction
        while taken[lane] & gaps[net]:
            lane += net.direction
        taken[lane] |= gaps[net]
        lanes |= dict.fromkeys(nets[net], lane)
    return lanes


class Grid:
    """Coordinates of boxes and wires.

    column: of every group, counted through all rows. starts: the first column of every
    row. offset: of every group, over the middle of its row, in boxes.

    Both ends of a wire have the same methods: `leaves` is True for the end at its
    source, False for the end at its target.
    """

    def __init__(
        self,
        wires: Sequence[Wire],
        column: Sequence[int],
        starts: Sequence[int],
        offset: Sequence[float],
    ):
        self.wires = wires
        self.column = column
        self.starts = starts
        self.offset = offset
        self.lane = _lanes(wires, column)
        # group, leaves -> its wires
        self.wires_at: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for number, wire in enumerate(wires):
            self.wires_at[wire.source, True].append(number)
            self.wires_at[wire.target, False].append(number)
        # gap, leaves -> vertical lines; those of the farthest lanes are next to the box
        self.turns: dict[tuple[int, bool], list[tuple]] = defaultdict(list)
        for number in sorted(self.lane, key=lambda i: -abs(self.lane[i])):
            for leaves in (True, False):
                lines = self.turns[self.gap(number, leaves), leaves]
                if self.line(number, leaves) not in lines:
                    lines.append(self.line(number, leaves))
        self._place_rows()

    def _place_rows(self) -> None:
        """Sets y of the middle of every row and of its lanes, and the height of all."""
        highest: dict[int, float] = defaultdict(float)
        for column, offset in zip(self.column, self.offset, strict=True):
            row = self.row(column)
            highest[row] = max(highest[row], offset)
        lanes: dict[int, set[int]] = defaultdict(set)
        for wire, lane in self.lane.items():
            for row in self.rows_of(wire):
                lanes[row].add(lane)
        self.middle: list[float] = []
        self.lane_y: dict[tuple[int, int], float] = {}  # row, lane -> y
        y = -GAP_HEIGHT / 2
        for row in range(len(self.starts)):
            half = highest[row] * (BOX_HEIGHT + GAP_HEIGHT) + BOX_HEIGHT / 2
            above = [lane for lane in lanes[row] if lane > 0]
            y = self._place_lanes(row, above, y)
            y -= CLEARANCE + half
            self.middle.append(y)
            y -= CLEARANCE + half
            below = [lane for lane in lanes[row] if lane < 0]
            y = self._place_lanes(row, below, y)
        self.height = -y

    def _place_lanes(self, row: int, lanes: Iterable[int], y: float) -> float:
        """Puts lanes below y from the highest to the lowest, whose y it returns."""
        for lane in sorted(lanes, reverse=True):
            y -= LANE
            self.lane_y[row, lane] = y
        return y

    def row(self, column: int) -> int:
        return bisect_right(self.starts, column) - 1

    def rows_of(self, wire: int) -> range:
        """The rows of a wire, in its direction."""
        start = self.row(self.column[self.wires[wire].source])
        end = self.row(self.column[self.wires[wire].target])
        return range(start, end + 1) if end >= start else range(start, end - 1, -1)

    def left(self) -> float:
        """x where all rows begin."""
        return MARGIN + (NOTE_WIDTH if len(self.starts) > 1 else 0)

    def right(self, row: int) -> float:
        """x where a row ends."""
        ends = [*self.starts[1:], max(self.column) + 1]
        size = ends[row] - self.starts[row]
        return self.left() + GAP_WIDTH + size * (BOX_WIDTH + GAP_WIDTH)

    def center(self, group: int) -> Point:
        row = self.row(self.column[group])
        place = self.column[group] - self.starts[row]
        x = (place + 0.5) * BOX_WIDTH + (place + 1) * GAP_WIDTH
        up = self.offset[group] * (BOX_HEIGHT + GAP_HEIGHT)
        return self.left() + x, self.middle[row] + up

    def side(self, wire: int) -> int:
        """1 if a wire is over the boxes, as one that leads back to its own box; -1 if
        it is below; 0 if it is direct."""
        lane = self.lane.get(wire, 0)
        if lane > 0 or self.wires[wire].source == self.wires[wire].target:
            return 1
        return -1 if lane < 0 else 0

    def box(self, wire: int, leaves: bool) -> int:
        """The group at an end of a wire."""
        return self.wires[wire].source if leaves else self.wires[wire].target

    def gap(self, wire: int, leaves: bool) -> int:
        """The gap between columns at an end of a wire."""
        column = self.column[self.box(wire, leaves)]
        return column if leaves else column - 1

    def line(self, wire: int, leaves: bool) -> tuple:
        """A key, equal for wires that are one line at that end: those that leave a
        group in one lane."""
        lane = self.lane.get(wire)
        if lane is None or not leaves:
            return (wire,)
        return self.wires[wire].source, lane

    def port(self, wire: int, leaves: bool) -> Point:
        """Where a wire touches a box: lanes far from its middle, direct wires near
        it."""
        group = self.box(wire, leaves)
        side = self.side(wire)
        wires = self.wires_at[group, leaves]
        beside = [other for other in wires if self.side(other) == side]
        if side:
            beside.sort(key=lambda i: abs(self.lane.get(i, 0)))
        else:  # in the order of the boxes at their other ends
            beside.sort(key=lambda i: (-self.offset[self.box(i, not leaves)], i))
        lines = list(dict.fromkeys(self.line(other, leaves) for other in beside))
        place = lines.index(self.line(wire, leaves)) + 1
        share = place / (len(lines) + 1)
        if side:
            height = side * (0.25 + 0.2 * share)
        else:
            reach = 0.4 if len(beside) == len(wires) else 0.22
            height = reach * (1 - 2 * share)
        x, y = self.center(group)
        half = BOX_WIDTH / 2
        return x + (half if leaves else -half), y + BOX_HEIGHT * height

    def turn(self, wire: int, leaves: bool) -> float:
        """x of the vertical line between a wire's lane and a box."""
        gap = self.gap(wire, leaves)
        lines = len(self.turns[gap, False]) + len(self.turns[gap, True])
        place = self.turns[gap, leaves].index(self.line(wire, leaves)) + 1
        distance = GAP_WIDTH * place / (lines + 1)
        x, _ = self.port(wire, leaves)
        return x + (distance if leaves else -distance)

    def route(self, wire: int) -> list[list[Point]]:
        """The lines of a wire, one in each of its rows."""
        if self.wires[wire].source == self.wires[wire].target:
            return [self._loop(wire)]
        rows = self.rows_of(wire)
        lines = []
        for row in rows:
            begin = self._at_box if row == rows[0] else self._at_margin
            end = self._at_box if row == rows[-1] else self._at_margin
            to_end = end(wire, row, leaves=False)
            lines.append(begin(wire, row, leaves=True) + to_end[::-1])
        return lines

    def _loop(self, wire: int) -> list[Point]:
        """From the right side of a box over it to its left side."""
        start = self.port(wire, True)
        end = self.port(wire, False)
        _, y = self.center(self.wires[wire].source)
        top = y + BOX_HEIGHT / 2 + LOOP
        right = start[0] + LOOP
        left = end[0] - LOOP
        outward = [start, (right, start[1]), (right, top)]
        return [*outward, (left, top), (left, end[1]), end]

    def _at_box(self, wire: int, row: int, leaves: bool) -> list[Point]:
        """From the box at an end of a wire to its lane in a row, if it has one."""
        x, y = self.port(wire, leaves)
        if wire not in self.lane:
            return [(x, y)]
        turn = self.turn(wire, leaves)
        lane_y = self.lane_y[row, self.lane[wire]]
        return [(x, y), (turn, y), (turn, lane_y)]

    def _at_margin(self, wire: int, row: int, leaves: bool) -> list[Point]:
        """Where a wire begins in a row that is not its first, or ends in one that is
        not its last."""
        forward = self.side(wire) >= 0
        x = self.left() if forward == leaves else self.right(row)
        if wire in self.lane:
            return [(x, self.lane_y[row, self.lane[wire]])]
        _, y = self.port(wire, not leaves)
        return [(x, y)]
