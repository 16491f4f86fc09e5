"""The processes that share parameters: which part of each they hold, which they own."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from math import prod
from textwrap import shorten
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, distributed

from ngopt import shard_layout
from ngopt.distributed import ownership
from ngopt.distributed.collectives import Collectives
from ngopt.distributed.ownership import Cost, Ownership
from ngopt.roles.buckets import Layouts, MatrixLayout
from ngopt.shard_layout import LocalParameter, Piece, real

# A table has several owners if it costs more than this share of a rank's mean cost.
MAX_SHARE = 0.5


class Shards:
    """Which part of every parameter each process holds, and which it owns.

    Ranks are numbered by their order in the default group.

    Attributes:
        pieces: of each parameter, stored by each rank.
        local_only: parameters that are no DTensors while others are. Each process
            updates its own, as other optimizers do.
        ownerships: of each parameter; set by `divide`.
        counts: parameters whose stored part this process adds to sums over all
            elements, (n,) bool. Each part is added by one process.
        has_parts: whether any process holds less than all elements.
        collectives: of these processes.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        group: Any,
        known: Mapping[Tensor, Ownership],
    ):
        """named: parameters, in the same order in all processes.

        group: their processes if no parameter is a DTensor, or their ranks in a copied
        optimizer; None: those of the mesh.
        known: owners of parameters that have a state.

        Raises ValueError in all processes if they have different parameters.
        """
        params = [p for _, p in named]
        self.device = params[0].device
        if isinstance(group, list):
            group = Collectives(sorted(group)).group
        ranks, self._coordinates = shard_layout.mesh_ranks(params, group)
        self.rank = ranks.index(distributed.get_rank())
        self.size = len(ranks)
        self.collectives = Collectives(ranks, group)
        local_parameters = []
        for name, p in named:
            is_local_only = group is None and not shard_layout.is_dtensor(p)
            shape = tuple(real(p).shape)
            piece = shard_layout.local_piece(name, p)
            local_parameters.append(
                LocalParameter(name, shape, str(p.dtype), piece, is_local_only)
            )
        self.shapes = [x.shape for x in local_parameters]
        self.local_only = [x.is_local_only for x in local_parameters]
        self._known = [known.get(p) for p in params]
        parameters_of_ranks = self.collectives.gather(local_parameters)
        _check_equal_parameters(parameters_of_ranks)
        self.pieces: list[tuple[Piece, ...]] = []
        self.has_parts = False
        for shape, *of_ranks in zip(self.shapes, *parameters_of_ranks, strict=True):
            pieces = tuple(parameter.piece for parameter in of_ranks)
            self.pieces.append(pieces)
            self.has_parts |= set(pieces) != {Piece.full(shape)}
        self.ownerships: list[Ownership] = []

    def divide(self, layouts: Sequence[Layouts], every: int) -> None:
        """Chooses owners once: they store the state, even if costs change.

        layouts: of each parameter. every: steps between two renewals of a basis.
        """
        if self.ownerships:
            return
        costs: dict[int, Cost] = {}
        for i, is_local_only in enumerate(self.local_only):
            if not is_local_only:
                costs[i] = ownership.cost_of(layouts[i], every)
        shares = ownership.shares_of(list(costs.values()))
        ownerships: dict[int, Ownership] = {}
        undivided: dict[int, int | None] = {}  # the known owner of each
        for i, share in zip(costs, shares, strict=True):
            owned = self._known[i]
            if owned is None and self._is_divided(i, layouts[i], max(share)):
                owned = ownership.by_rows(self.pieces[i])
            if owned is not None and owned.is_divided:
                ownerships[i] = owned
            else:
                undivided[i] = None if owned is None else owned.first
        costs_of_undivided = [costs[i] for i in undivided]
        owners = ownership.owners_of(
            costs_of_undivided, self.size, list(undivided.values())
        )
        for i, rank in zip(undivided, owners, strict=True):
            ownerships[i] = self._by_one(i, rank)
        counts = []
        for i in range(len(self.shapes)):
            owned = ownerships.get(i) or self._by_one(i, self.rank)
            self.ownerships.append(owned)
            counts.append(self.rank in dict(self.sources(i, owned.first)))
        self.counts = torch.tensor(counts, dtype=torch.bool, device="cpu")

    def _is_divided(self, i: int, layouts: Layouts, share: float) -> bool:
        """Whether a parameter is to have several owners; share: of all costs."""
        shape = self.shapes[i]
        if not shape or not self.numel(i) or not ownership.has_free_rows(layouts):
            return False
        held = {piece for piece in self.pieces[i] if piece.numel}
        if any(piece.shape[1:] != shape[1:] for piece in held):
            return False
        is_in_parts = not layouts[0].axes and held != {Piece.full(shape)}
        return is_in_parts or share * self.size > MAX_SHARE

    def _by_one(self, i: int, rank: int) -> Ownership:
        return ownership.by_one(rank, self.size, self.shapes[i])

    def layouts(self, i: int, layouts: Layouts) -> tuple[MatrixLayout, ...]:
        """Layouts of what this process owns of a parameter; layouts: of all of it."""
        if not self.owns(i):
            return ()
        if not self.ownerships[i].is_divided:
            return tuple(layouts)
        return (ownership.layout_of_rows(layouts[0], self.owned_slice(i)),)

    def undivided(self) -> "Shards":
        """A copy in which the first owner of each parameter owns all of it."""
        shards = copy(self)
        owners = [owned.first for owned in self.ownerships]
        shards.ownerships = [self._by_one(i, owner) for i, owner in enumerate(owners)]
        return shards

    def owned_slice(self, i: int) -> Piece:
        """What this process owns of a parameter."""
        return self.ownerships[i].domains[self.rank]

    def owns(self, i: int) -> bool:
        """Whether this process owns a part of a parameter, or is its first owner."""
        return self.owned_slice(i).numel > 0 or self.ownerships[i].first == self.rank

    def stored(self, i: int) -> Piece:
        """What this process holds of a parameter."""
        return self.pieces[i][self.rank]

    def of(self, parameters: Sequence[int]) -> "Shards":
        """A copy with some of the parameters."""
        shards = copy(self)
        shards.local_only = [self.local_only[i] for i in parameters]
        shards.shapes = [self.shapes[i] for i in parameters]
        shards.ownerships = [self.ownerships[i] for i in parameters]
        shards.pieces = [self.pieces[i] for i in parameters]
        shards.counts = self.counts[list(parameters)]
        return shards

    def with_pieces(
        self,
        shapes: Sequence[tuple[int, ...]],
        owned: Sequence[Ownership],
        pieces: Sequence[tuple[Piece, ...]],
    ) -> "Shards":
        """The same processes with other values, which all share."""
        shards = copy(self)
        shards.shapes = list(shapes)
        shards.ownerships = list(owned)
        shards.pieces = list(pieces)
        shards.local_only = [False] * len(shapes)
        return shards

    def numel(self, i: int) -> int:
        return prod(self.shapes[i])

    def sources(self, i: int, target: int) -> Iterator[tuple[int, Piece]]:
        """(rank, piece that it holds) of ranks that together hold a whole parameter.

        Of ranks with the same piece, the nearest to a target in the mesh.
        """
        holders: dict[Piece, list[tuple[int, int]]] = {}
        for rank, piece in enumerate(self.pieces[i]):
            holders.setdefault(piece, []).append((self._distance(rank, target), rank))
        for piece, ranks in holders.items():
            if piece.numel:
                yield min(ranks)[1], piece

    def _distance(self, rank: int, other: int) -> int:
        """Number of dimensions of the mesh in which two ranks differ."""
        pairs = zip(self._coordinates[rank], self._coordinates[other], strict=False)
        return sum(a != b for a, b in pairs)

    def sum_of_parts(self, values: Tensor) -> Tensor:
        """Sums over all elements, (k, n); values: over those that a process stores."""
        if not self.has_parts:
            return values
        return self._summed(values, self.counts.to(values.device))

    def sum_of_owners(self, values: Tensor) -> Tensor:
        """Values of all parameters, (k, n); values: 0 in all processes but one."""
        return self._summed(values, torch.ones_like(values, dtype=torch.bool))

    def _summed(self, values: Tensor, counts: Tensor) -> Tensor:
        local_only = torch.tensor(
            self.local_only, dtype=torch.bool, device=values.device
        )
        total = torch.where(counts & ~local_only, values, torch.zeros_like(values))
        self.collectives.sum_(total)
        return torch.where(local_only, values, total)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        total = values.clone()
        self.collectives.sum_(total)
        return total

    def check_equal(self, values: Mapping[str, Any]) -> None:
        """Raises ValueError in all processes if one has other values."""
        digest = crc32(repr(values).encode())
        if len(set(self.collectives.gather_integers(digest))) == 1:
            return
        values_of_ranks = self.collectives.gather(values)
        for key, expected in values_of_ranks[0].items():
            for rank, other in enumerate(values_of_ranks):
                if other[key] != expected:
                    raise ValueError(
                        f"NGOptimizer: expected the same {key} in all processes; got "
                        f"{_short(expected)} in rank 0 and {_short(other[key])} in "
                        f"rank {rank}"
                    )


def _check_equal_parameters(
    parameters_of_ranks: Sequence[Sequence[LocalParameter]],
) -> None:
    """Raises ValueError if processes have different parameters, or in another order."""
    expected = parameters_of_ranks[0]
    for rank, parameters in enumerate(parameters_of_ranks):
        if len(parameters) != len(expected):
            raise ValueError(
                f"NGOptimizer: expected the same parameters in all processes; got "
                f"{len(expected)} in rank 0 and {len(parameters)} in rank {rank}"
            )
        for first, other in zip(expected, parameters, strict=True):
            if first._replace(piece=other.piece) != other:
                raise ValueError(
                    "NGOptimizer: expected the same parameters in the same order in "
                    f"all processes; got {_described(first)} in rank 0 where rank "
                    f"{rank} has {_described(other)}"
                )


def _described(held: LocalParameter) -> str:
    return f"'{held.name}' {held.shape} {held.dtype}"


def _short(value: Any) -> str:
    return shorten(str(value), 200, placeholder=" ...")
