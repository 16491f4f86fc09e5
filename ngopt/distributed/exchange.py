"""Gradients to owners, and changes to all processes that hold a part of a parameter."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.distributed.shards import Shards
from ngopt.packing import Values, flatten
from ngopt.shard_layout import Piece

PieceOf = Callable[[int], Piece]  # of a parameter
Transfer = tuple[Callable[[], None], Tensor, Tensor]
"""Of a collective: what waits for it, its result, and what is sent, kept until then."""
Arrival = Callable[[], dict[int, Tensor]]
"""Waits for what was sent, and gives tensors by index of a parameter."""


class Part(NamedTuple):
    """A piece of a parameter, relative to what a process has of it before or after."""

    parameter: int
    piece: Piece


class Route:
    """What this process sends and receives in one direction, by rank.

    source, target: the piece that this process has of a parameter before and after.
    wanted: parameters that it has after. kept: parts that it has already, before and
    after.
    """

    def __init__(
        self, shards: Shards, source: PieceOf, target: PieceOf, wanted: Sequence[int]
    ):
        self._shards = shards
        self._source = source
        self._target = target
        self._wanted = wanted
        self.sent: list[list[Part]] = [[] for _ in range(shards.size)]
        self.received: list[list[Part]] = [[] for _ in range(shards.size)]
        self.kept: list[tuple[Part, Part]] = []
        self._is_used = False  # by any process: only then is there a collective

    def add(self, source: int, target: int, i: int, piece: Piece) -> None:
        """Adds a piece of parameter i that one rank has and another is to have."""
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

    def start(self, values: Values, like: Tensor) -> Arrival:
        """Begins to send; the function that is returned gives what is wanted.

        values: what this process has. like: has their dtype and device.
        """
        if not self._is_used:
            return partial(self._finish, values, like)
        pieces = []
        for i, piece in chain.from_iterable(self.sent):
            pieces.append(piece.select(values[i]).to(like.dtype))
        sent = flatten(pieces) if pieces else like.new_empty(0)
        received = _numels(self.received)
        result = like.new_empty(sum(received))
        wait = self._shards.collectives.all_to_all(
            result, sent, received, _numels(self.sent)
        )
        return partial(self._finish, values, like, (wait, result, sent))

    def _finish(
        self, values: Values, like: Tensor, transfer: Transfer | None = None
    ) -> dict[int, Tensor]:
        pieces: dict[int, list[tuple[Piece, Tensor]]] = defaultdict(list)
        for before, (i, piece) in self.kept:
            pieces[i].append((piece, before.piece.select(values[i])))
        if transfer is not None:
            wait, result, _ = transfer
            wait()
            start = 0
            for i, piece in chain.from_iterable(self.received):
                value = result.narrow(0, start, piece.numel)
                pieces[i].append((piece, value.view(piece.shape)))
                start += piece.numel
        return {i: _joined(self._target(i), pieces[i], like) for i in self._wanted}


def _numels(parts_of_ranks: Sequence[Sequence[Part]]) -> list[int]:
    return [sum(part.piece.numel for part in parts) for parts in parts_of_ranks]


def _joined(
    whole: Piece, pieces: Sequence[tuple[Piece, Tensor]], like: Tensor
) -> Tensor:
    """Pieces that together are a whole; without a copy if it is one piece."""
    if len(pieces) == 1 and pieces[0][0].shape == whole.shape:
        return pieces[0][1]
    value = like.new_empty(whole.shape)
    for piece, part in pieces:
        piece.select(value).copy_(part)
    return value


class Exchange:
    """Parameters that are sent together: one collective in each direction.

    owned: parameters that this process owns.
    """

    def __init__(self, shards: Shards, parameters: Sequence[int]):
        self.parameters = parameters
        self.owned = [i for i in parameters if shards.owns(i)]
        self._up = Route(shards, shards.stored, shards.owned_slice, self.owned)
        self._down = Route(shards, shards.owned_slice, shards.stored, parameters)
        for i in parameters:
            domains, held = shards.ownerships[i].domains, shards.pieces[i]
            # nothing is sent; the loop over all pairs of ranks would take seconds
            if shards.local_only[i] or domains == held:
                self._up.add(shards.rank, shards.rank, i, shards.stored(i))
                self._down.add(shards.rank, shards.rank, i, shards.stored(i))
                continue
            for owner, domain in enumerate(domains):
                if not domain.numel:
                    continue
                for source, piece in shards.sources(i, owner):
                    self._up.add(source, owner, i, piece.overlap(domain))
                for holder, piece in enumerate(held):
                    self._down.add(owner, holder, i, piece.overlap(domain))

    def to_owners(self, values: Values) -> Arrival:
        """Begins to send this process' parts of parameters or gradients; gives what it
        owns. All are promoted to one dtype."""
        dtype = reduce(torch.promote_types, [values[i].dtype for i in self.parameters])
        like = values[self.parameters[0]].new_empty(0, dtype=dtype)
        return self._up.start(values, like)

    def to_holders(self, values: Values, like: Tensor) -> Arrival:
        """Begins to send what this process owns to all that hold a part of it; gives
        what this process holds of all parameters. like: has their dtype."""
        return self._down.start(values, like)


def make_exchanges(shards: Shards, most: int, apart: Sequence[int]) -> list[Exchange]:
    """Exchanges of all parameters; in each, every owner updates some of them.

    most: elements that one owner updates, unless one parameter has more. apart:
    parameters with an exchange each.
    """
    groups = [[i] for i in apart]
    local = []  # updated without sending; the same list in all processes
    sent = []
    for i in range(len(shards.shapes)):
        if i in apart:
            continue
        if shards.local_only[i] or shards.ownerships[i].is_divided:
            local.append(i)
        else:
            sent.append((shards.numel(i), shards.shapes[i], i))
    if local:
        groups.append(local)
    rounds: list[list[list[int]]] = []  # parameters by round and owner
    last = [-1] * shards.size  # round of each owner
    free = [-1] * shards.size  # elements that it can still update in that round
    for numel, _, i in sorted(sent):
        rank = shards.ownerships[i].first
        if numel > free[rank]:
            last[rank] += 1
            free[rank] = most
        if last[rank] == len(rounds):
            rounds.append([[] for _ in range(shards.size)])
        rounds[last[rank]][rank].append(i)
        free[rank] -= numel
    groups += [list(chain.from_iterable(of_ranks)) for of_ranks in rounds]
    return [Exchange(shards, group) for group in groups]
