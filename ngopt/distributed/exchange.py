"""Gradients to owners, and changes to all who hold a part of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        self.owned = [i for i in parameters if shards.owners[i] == shards.rank]
        self._up, self._down = Route(shards), Route(shards)
        for i in parameters:
            if not shards.alone[i]:
                self._plan(i)

    def _plan(self, i: int) -> None:
        owner = self._shards.owners[i]
        for source, piece in self._shards.sources(i):
            self._up.add(source, owner, Part(i, piece))
        for holder, pieces in enumerate(self._shards.pieces):
            self._down.add(owner, holder, Part(i, pieces[i]))

    def to_owners(self, values: Values) -> Transfer:
        """Begins to send this process' parts of parameters, or of gradients."""
        like = values[self.parameters[0]]
        return self._up.start(lambda part: values[part.parameter], like)

    def wholes(self, values: Values, transfer: Transfer) -> dict[int, Tensor]:
        """Those of the owned parameters, when all parts have arrived."""
        found: dict[int, Tensor] = {}
        for i in self.owned:
            own, shape = self._shards.own(i), self._shards.shapes[i]
            if own.shape == shape:
                found[i] = values[i]
                continue
            found[i] = values[i].new_empty(shape)
            own.of(found[i]).copy_(values[i])
        for part, value in transfer.wait():
            part.piece.of(found[part.parameter]).copy_(value)
        return found

    def to_holders(self, wholes: Values, like: Tensor) -> Transfer:
        """Begins to send values of owned parameters to all who hold a part of them."""

        def part_of(part: Part) -> Tensor:
            return part.piece.of(wholes[part.parameter]).contiguous()

        return self._down.start(part_of, like)

    def parts(
        self, wholes: Values, transfer: Transfer, like: Tensor
    ) -> dict[int, Tensor]:
        """Those of all parameters, when they have arrived; like: has their dtype."""
        found = {i: self._shards.own(i).of(wholes[i]) for i in self.owned}
        found |= {part.parameter: value for part, value in transfer.wait()}
        for i in self.parameters:
            if i not in found:  # this process holds nothing of it
                found[i] = like.new_empty(self._shards.own(i).shape)
        return found


def make_exchanges(shards: Shards, most: int) -> list[Exchange]:
    """Of all parameters, at most so many elements each, but for large parameters.

    Those of one shape travel together.
    """
    numbers = range(len(shards.shapes))
    order = sorted(numbers, key=lambda i: (shards.numel(i), shards.shapes[i], i))
    rounds: list[list[int]] = []
    room = -1
    for i in order:
        numel = shards.numel(i)
        if numel > room:
            rounds.append([])
            room = most
        rounds[-1].append(i)
        room -= numel
    return [Exchange(shards, some) for some in rounds]
