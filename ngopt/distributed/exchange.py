"""Gradients to owners, and changes to all who hold a part of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

from torch import Tensor

from ngopt.distributed.pieces import Piece
from ngopt.distributed.shards import Shards
from ngopt.packing import flatten

Values = Mapping[int, Tensor]  # by the numbers of parameters


class Part(NamedTuple):
    """What one process sends to another of a parameter."""

    parameter: int
    piece: Piece


class Route:
    """What this process sends and receives in one direction, by rank."""

    def __init__(self, shards: Shards):
        self._shards = shards
        self.sent: list[list[Part]] = [[] for _ in range(shards.size)]
        self.received: list[list[Part]] = [[] for _ in range(shards.size)]
        self._is_used = False  # by any process: only then is there a collective

    def add(self, source: int, target: int, part: Part) -> None:
        if source == target or not part.piece.numel:
            return
        self._is_used = True
        if source == self._shards.rank:
            self.sent[target].append(part)
        if target == self._shards.rank:
            self.received[source].append(part)

    def start(self, values: Callable[[Part], Tensor], like: Tensor) -> Transfer:
        """Begins to send values of parts; like: has their dtype and device."""
        if not self._is_used:
            return Transfer()
        found = [values(part) for parts in self.sent for part in parts]
        sent = flatten(found) if found else like.new_empty(0)
        received, counts = map(_counts, (self.received, self.sent))
        result = like.new_empty(sum(received))
        wait = self._shards.all_to_all(result, sent, received, counts)
        return Transfer(
            wait, sent, result, [x for parts in self.received for x in parts]
        )


def _counts(parts_of_ranks: Sequence[Sequence[Part]]) -> list[int]:
    return [sum(part.piece.numel for part in parts) for parts in parts_of_ranks]


class Transfer(NamedTuple):
    """A collective under way."""

    finish: Callable[[], None] | None = None
    sent: Tensor | None = None  # kept until it has arrived
    result: Tensor | None = None
    parts: Sequence[Part] = ()  # of the result

    def wait(self) -> list[tuple[Part, Tensor]]:
        """What has arrived."""
        if self.finish is None or self.result is None:
            return []
        self.finish()
        values = self.result.split([part.piece.numel for part in self.parts])
        pairs = zip(self.parts, values, strict=True)
        return [(part, x.view(part.piece.shape)) for part, x in pairs]


class Exchange:
    """Of some parameters, which travel together: one collective each way.

    owned: those that this process owns.
    """

    def __init__(self, shards: Shards, parameters: Sequence[int]):
        self._shards, self.parameters = shards, parameters
        self.owned = [i for i in parameters if shards.is_own(i)]
        self._up, self._down = Route(shards), Route(shards)
        for i in parameters:
            if not shards.alone[i]:
                self._plan(i)

    def _plan(self, i: int) -> None:
        domains = self._shards.owned[i].domains
        held = tuple(pieces[i] for pieces in self._shards.pieces)
        # what follows goes over all pairs of ranks: many seconds where these are many
        if domains == held:  # nothing travels
            return
        for owner, domain in enumerate(domains):
            if not domain.numel:
                continue
            for source, piece in self._shards.sources(i, owner):
                self._up.add(source, owner, Part(i, piece.overlap(domain)))
            for holder, piece in enumerate(held):
                self._down.add(owner, holder, Part(i, piece.overlap(domain)))

    def to_owners(self, values: Values) -> Transfer:
        """Begins to send this process' parts of parameters, or of gradients."""

        def part_of(part: Part) -> Tensor:
            own = self._shards.own(part.parameter)
            return part.piece.within(own).of(values[part.parameter])

        return self._up.start(part_of, values[self.parameters[0]])

    def domains(self, values: Values, transfer: Transfer) -> dict[int, Tensor]:
        """What this process owns, when all parts have arrived."""
        found: Pieces = {}
        for i in self.owned:
            own, domain = self._shards.own(i), self._shards.domain(i)
            _add(found, i, own.overlap(domain), own, values[i])
        _arrive(found, transfer)
        shards = self._shards
        return {i: _joined(shards.domain(i), found, i, values[i]) for i in self.owned}

    def to_holders(self, values: Values, like: Tensor) -> Transfer:
        """Begins to send what this process owns to all who hold a part of it."""

        def part_of(part: Part) -> Tensor:
            domain = self._shards.domain(part.parameter)
            return part.piece.within(domain).of(values[part.parameter])

        return self._down.start(part_of, like)

    def parts(
        self, values: Values, transfer: Transfer, like: Tensor
    ) -> dict[int, Tensor]:
        """What this process holds of all parameters, when it has arrived; values: what it
        owns; like: has their dtype."""
        found: Pieces = {}
        for i in self.owned:
            own, domain = self._shards.own(i), self._shards.domain(i)
            _add(found, i, own.overlap(domain), domain, values[i])
        _arrive(found, transfer)
        shards = self._shards
        return {i: _joined(shards.own(i), found, i, like) for i in self.parameters}


# Pieces of parameters, by their numbers, and their values.
Pieces = dict[int, list[tuple[Piece, Tensor]]]


def _add(found: Pieces, i: int, piece: Piece, other: Piece, value: Tensor) -> None:
    """Adds a piece of another, whose value this is, unless it is empty."""
    if piece.numel:
        part = value if piece == other else piece.within(other).of(value)
        found.setdefault(i, []).append((piece, part))


def _arrive(found: Pieces, transfer: Transfer) -> None:
    for (i, piece), value in transfer.wait():
        found.setdefault(i, []).append((piece, value))


def _joined(whole: Piece, found: Pieces, i: int, like: Tensor) -> Tensor:
    """Of pieces that together are the whole; like: has their dtype and device."""
    pieces = found.get(i, [])
    if len(pieces) == 1 and pieces[0][0] == whole:
        return pieces[0][1]
    value = like.new_empty(whole.shape)
    for piece, part in pieces:
        piece.within(whole).of(value).copy_(part)
    return value


def make_exchanges(shards: Shards, most: int, apart: Sequence[int]) -> list[Exchange]:
    """Of all parameters: in each every owner updates some, so that none waits.

    most: elements that one owner updates, unless one parameter has more. apart:
    parameters with an exchange each.
    """
    rest = sorted(set(range(len(shards.shapes))).difference(apart))
    # what each process updates where it is; the same in all, whoever owns what
    near = [i for i in rest if shards.alone[i] or shards.owned[i].is_divided]
    batches: list[list[list[int]]] = [[] for _ in range(shards.size)]
    rooms = [-1] * shards.size
    order = set(rest).difference(near)
    for i in sorted(order, key=lambda i: (shards.numel(i), shards.shapes[i], i)):
        rank, numel = shards.owned[i].first, shards.numel(i)
        if numel > rooms[rank]:
            batches[rank].append([])
            rooms[rank] = most
        batches[rank][-1].append(i)
        rooms[rank] -= numel
    rounds = [list(chain(*some)) for some in zip_longest(*batches, fillvalue=())]
    return [
        Exchange(shards, some)
        for some in [*([i] for i in apart), near, *rounds]
        if some
    ]
