"""Gradients to owners, and changes to all who hold a part of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import chain, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.distributed.shards import Shards
from ngopt.packing import flatten
from ngopt.shard_layout import Piece

Values = Mapping[int, Tensor]  # by the numbers of parameters


class Part(NamedTuple):
    """A piece of a parameter, within what a process has of it or is to have."""

    parameter: int
    piece: Piece


class Route:
    """What this process sends and receives in one direction, by rank.

    kept: what it has already, in both forms of `Part`. source, target: what this
    process has of a parameter before, and after.
    """

    def __init__(
        self,
        shards: Shards,
        source: Callable[[int], Piece],
        target: Callable[[int], Piece],
    ):
        self._shards, self._source, self._target = shards, source, target
        self.sent: list[list[Part]] = [[] for _ in range(shards.size)]
        self.received: list[list[Part]] = [[] for _ in range(shards.size)]
        self.kept: list[tuple[Part, Part]] = []
        self._is_used = False  # by any process: only then is there a collective

    def add(self, source: int, target: int, i: int, piece: Piece) -> None:
        """Of parameter i, a piece that one rank has and another is to have."""
        if not piece.numel:
            return
        self._is_used |= source != target
        rank = self._shards.rank
        if source == target == rank:
            self.kept.append((self._before(i, piece), self._after(i, piece)))
        elif source == rank:
            self.sent[target].append(self._before(i, piece))
        elif target == rank:
            self.received[source].append(self._after(i, piece))

    def _before(self, i: int, piece: Piece) -> Part:
        return Part(i, piece.within(self._source(i)))

    def _after(self, i: int, piece: Piece) -> Part:
        return Part(i, piece.within(self._target(i)))

    def start(self, values: Values, like: Tensor) -> Transfer:
        """Begins to send; values: what this process has. like: has their dtype and
        device."""
        if not self._is_used:
            return Transfer()
        parts = [part for some in self.sent for part in some]
        found = [part.piece.of(values[part.parameter]).to(like.dtype) for part in parts]
        sent = flatten(found) if found else like.new_empty(0)
        received, counts = map(_counts, (self.received, self.sent))
        result = like.new_empty(sum(received))
        wait = self._shards.all_to_all(result, sent, received, counts)
        return Transfer(
            wait, sent, result, [x for parts in self.received for x in parts]
        )

    def finish(
        self, values: Values, transfer: Transfer, wanted: Sequence[int], like: Tensor
    ) -> dict[int, Tensor]:
        """What this process then has of some parameters; for others see `start`."""
        found: dict[int, list[tuple[Piece, Tensor]]] = {i: [] for i in wanted}
        for before, (i, piece) in self.kept:
            found[i].append((piece, before.piece.of(values[i])))
        for (i, piece), value in transfer.wait():
            found[i].append((piece, value))
        return {i: _joined(self._target(i), found[i], like) for i in wanted}


def _counts(parts_of_ranks: Sequence[Sequence[Part]]) -> list[int]:
    return [sum(part.piece.numel for part in parts) for parts in parts_of_ranks]


def _joined(
    whole: Piece, pieces: Sequence[tuple[Piece, Tensor]], like: Tensor
) -> Tensor:
    """Of pieces within it that together are the whole."""
    if len(pieces) == 1 and pieces[0][0].shape == whole.shape:
        return pieces[0][1]
    value = like.new_empty(whole.shape)
    for piece, part in pieces:
        piece.of(value).copy_(part)
    return value


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
        self._up = Route(shards, shards.own, shards.domain)
        self._down = Route(shards, shards.domain, shards.own)
        for i in parameters:
            self._plan(i)

    def _plan(self, i: int) -> None:
        rank, domains = self._shards.rank, self._shards.owned[i].domains
        held = tuple(pieces[i] for pieces in self._shards.pieces)
        # all pairs of ranks take many seconds where these are many
        if self._shards.alone[i] or domains == held:  # nothing travels
            self._up.add(rank, rank, i, held[rank])
            self._down.add(rank, rank, i, held[rank])
            return
        for owner, domain in enumerate(domains):
            if not domain.numel:
                continue
            for source, piece in self._shards.sources(i, owner):
                self._up.add(source, owner, i, piece.overlap(domain))
            for holder, piece in enumerate(held):
                self._down.add(owner, holder, i, piece.overlap(domain))

    def to_owners(self, values: Values) -> Transfer:
        """Begins to send this process' parts of parameters, or of gradients."""
        return self._up.start(values, self._like(values))

    def domains(self, values: Values, transfer: Transfer) -> dict[int, Tensor]:
        """What this process owns, when all parts have arrived."""
        return self._up.finish(values, transfer, self.owned, self._like(values))

    def _like(self, values: Values) -> Tensor:
        """Of the dtype in which values travel, which may have several."""
        some = [values[i] for i in self.parameters]
        dtype = reduce(torch.promote_types, {x.dtype for x in some})
        return some[0].new_empty(0, dtype=dtype)

    def to_holders(self, values: Values, like: Tensor) -> Transfer:
        """Begins to send what this process owns to all who hold a part of it."""
        return self._down.start(values, like)

    def parts(
        self, values: Values, transfer: Transfer, like: Tensor
    ) -> dict[int, Tensor]:
        """What this process holds of all parameters, when it has arrived; values: what
        it owns; like: has their dtype."""
        return self._down.finish(values, transfer, self.parameters, like)


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
