"""A group of processes that share parameters, and its collectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from math import prod
from textwrap import shorten
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, distributed

from ngopt.distributed.ownership import (
    Ownership,
    by_one,
    by_rows,
    cost_of,
    has_free_rows,
    layout_of_rows,
    owners_of,
    shares_of,
)
from ngopt.roles.kronecker_factors import MatrixLayout
from ngopt.shard_layout import (
    Held,
    Piece,
    is_dtensor,
    piece_of,
    place_of,
    real,
    whole,
)

# A table has many owners from so many times the mean cost of a rank on.
LARGE = 0.5


class Shards:
    """Which process holds what of every parameter, and which owns it.

    pieces: by rank and parameter. alone: parameters that are no DTensors beside some
    that are: each process updates its own, as other optimizers do. owned: who owns
    what, set by `divide`. counts: of which parameters this process' part counts in sums
    over all elements, (n,) bool: each part does in one process.

    Ranks are those of the group, whose order is that of the mesh.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        group: Any,
        known: Mapping[Tensor, Ownership],
    ):
        """named: parameters, the same in all processes, in this order.

        group: their processes, where no parameter is a DTensor; None: those of the
        mesh. known: of parameters that have a state.

        Raises ValueError in all processes if they have different parameters.
        """
        params = [p for _, p in named]
        self.device = params[0].device
        place = place_of(params, group)
        self.rank = place.ranks.index(distributed.get_rank())
        self.size, self._coordinates = len(place.ranks), place.coordinates
        self._groups = _Groups(place.ranks)
        self.alone = [group is None and not is_dtensor(p) for p in params]
        self._known = [known.get(p) for p in params]
        own = [
            Held(name, tuple(real(p).shape), str(p.dtype), piece_of(name, p), is_alone)
            for (name, p), is_alone in zip(named, self.alone, strict=True)
        ]
        every = self._groups.gather(own)
        _check_alike(every)
        self.shapes = [held.shape for held in own]
        self.pieces = [[held.piece for held in some] for some in every]
        self.owned: list[Ownership] = []
        self._alone = torch.tensor(self.alone, dtype=torch.bool, device="cpu")
        # whether sums over parts are those over parameters
        every = list(map(whole, self.shapes))
        self.has_parts = any(some != every for some in self.pieces)

    def divide(self, layouts: Sequence[Sequence[MatrixLayout]], every: int) -> None:
        """Decides who owns what, once: owners have the state, whatever costs become.

        layouts: of each parameter. every: steps in which a basis is renewed once.
        """
        if self.owned:
            return
        shared = [i for i, alone in enumerate(self.alone) if not alone]
        costs = {i: cost_of(layouts[i], every) for i in shared}
        shares = dict(zip(shared, shares_of(list(costs.values())), strict=True))
        found = {i: x for i in shared if (x := self._known[i]) is not None}
        for i in shared:
            if i not in found and self._is_divided(i, layouts[i], max(shares[i])):
                found[i] = by_rows([pieces[i] for pieces in self.pieces])
        rest = [i for i in shared if i not in found or not found[i].is_divided]
        known = [found[i].first if i in found else None for i in rest]
        ranks = owners_of([costs[i] for i in rest], self.size, known)
        found |= {i: self._by_one(i, rank) for i, rank in zip(rest, ranks, strict=True)}
        numbers = range(len(self.shapes))
        self.owned = [found.get(i) or self._by_one(i, self.rank) for i in numbers]
        counts = [
            self.rank in dict(self.sources(i, self.owned[i].first)) for i in numbers
        ]
        self.counts = torch.tensor(counts, dtype=torch.bool, device="cpu")

    def _is_divided(
        self, i: int, layouts: Sequence[MatrixLayout], share: float
    ) -> bool:
        """Whether a parameter is to have several owners; share: of all costs."""
        shape = self.shapes[i]
        if not has_free_rows(layouts) or not self.numel(i):
            return False
        pieces = {pieces[i] for pieces in self.pieces if pieces[i].numel}
        if any(piece.shape[1:] != shape[1:] for piece in pieces):
            return False
        is_in_parts = not layouts[0].axes and pieces != {whole(shape)}
        return is_in_parts or share * self.size > LARGE

    def _by_one(self, i: int, rank: int) -> Ownership:
        return by_one(rank, self.size, self.shapes[i])

    def layouts(
        self, i: int, layouts: Sequence[MatrixLayout]
    ) -> tuple[MatrixLayout, ...]:
        """Of what this process owns of a parameter; layouts: of all of it."""
        if not self.is_own(i):
            return ()
        if not self.owned[i].is_divided:
            return tuple(layouts)
        return (layout_of_rows(layouts[0], self.domain(i)),)

    def undivided(self) -> Shards:
        """The same, where the first owner of each parameter owns all of it."""
        found = copy(self)
        found.owned = [self._by_one(i, own.first) for i, own in enumerate(self.owned)]
        return found

    def domain(self, i: int) -> Piece:
        """What this process owns of a parameter."""
        return self.owned[i].domains[self.rank]

    def is_own(self, i: int) -> bool:
        """Whether this process owns any of a parameter."""
        return self.domain(i).numel > 0 or self.owned[i].first == self.rank

    def of(self, parameters: Sequence[int]) -> Shards:
        """Some of the parameters."""
        found = copy(self)
        numbers = list(parameters)
        for name in ("alone", "shapes", "owned"):
            values = getattr(self, name)
            setattr(found, name, [values[i] for i in numbers])
        found.pieces = [[pieces[i] for i in numbers] for pieces in self.pieces]
        found.counts, found._alone = self.counts[numbers], self._alone[numbers]
        return found

    def with_pieces(
        self,
        shapes: Sequence[tuple[int, ...]],
        owned: Sequence[Ownership],
        pieces: Sequence[Sequence[Piece]],
    ) -> Shards:
        """The same processes and other values, none of them alone."""
        found = copy(self)
        found.shapes, found.owned = list(shapes), list(owned)
        found.pieces = [list(some) for some in pieces]
        found.alone = [False] * len(shapes)
        return found

    def mesh(self, device_type: str) -> Any:
        """The processes as a mesh of one dimension."""
        return self._groups.mesh(device_type)

    def own(self, i: int) -> Piece:
        """What this process holds of a parameter."""
        return self.pieces[self.rank][i]

    def numel(self, i: int) -> int:
        """Elements of a whole parameter."""
        return prod(self.shapes[i])

    def sources(self, i: int, target: int) -> Iterator[tuple[int, Piece]]:
        """(rank, what it holds) of ranks that together hold all of a parameter: of
        those that hold the same, the nearest to a target in the mesh."""
        at = self._coordinates

        def distance(rank: int) -> tuple[int, int]:
            pairs = zip(at[rank], at[target], strict=True)
            return sum(a != b for a, b in pairs), rank

        for piece, ranks in self._holders(i).items():
            if piece.numel:
                yield min(ranks, key=distance), piece

    def _holders(self, i: int) -> dict[Piece, list[int]]:
        found: dict[Piece, list[int]] = {}
        for rank, pieces in enumerate(self.pieces):
            found.setdefault(pieces[i], []).append(rank)
        return found

    def sum_of_parts(self, values: Tensor) -> Tensor:
        """Sums over the elements that each process holds -> over all, (k, n)."""
        if not self.has_parts:
            return values
        return self._summed(values, self.counts.to(values.device))

    def sum_of_owners(self, values: Tensor) -> Tensor:
        """Values that one process has of each parameter, and others 0 -> of all, (k,
        n)."""
        return self._summed(values, torch.ones_like(values, dtype=torch.bool))

    def _summed(self, values: Tensor, counts: Tensor) -> Tensor:
        alone = self._alone.to(values.device)
        zero = torch.zeros_like(values)
        total = torch.where(counts & ~alone, values, zero)
        self._groups.sum(total)
        return torch.where(alone, values, total)

    def all_to_all(
        self, result: Tensor, sent: Tensor, received: list[int], counts: list[int]
    ) -> Any:
        """Begins to send `sent` in so many elements to each rank, and to receive."""
        return self._groups.all_to_all(result, sent, received, counts)

    def sum(self, values: Tensor) -> Tensor:
        """Of all processes."""
        total = values.clone()
        self._groups.sum(total)
        return total

    def check_equal(self, values: Mapping[str, Any]) -> None:
        """Raises ValueError in all processes if one has other values."""
        digest = crc32(repr(values).encode())
        if len(set(self._groups.gather_numbers(digest))) == 1:
            return
        every = self._groups.gather(values)
        for key, expected in every[0].items():
            for rank, other in enumerate(every):
                if other[key] != expected:
                    raise ValueError(
                        f"NGOptimizer: expected the same {key} in all processes; got "
                        f"{_short(expected)} in rank 0 and {_short(other[key])} in rank {rank}"
                    )


class _Groups:
    """The collectives, whose errors say which ranks took part."""

    def __init__(self, ranks: list[int]):
        self._ranks = ranks
        is_world = ranks == list(range(distributed.get_world_size()))
        self._group = distributed.group.WORLD if is_world else _new_group(ranks)
        self._of_host: Any = None
        self._meshes: dict[str, Any] = {}  # by type of device

    def _host(self) -> Any:
        """For objects and numbers of the host, which are sent without a device."""
        if self._of_host is None:
            is_host = "gloo" in str(distributed.get_backend_config(self._group))
            is_host |= distributed.get_backend(self._group) in ("gloo", "fake")
            self._of_host = self._group if is_host else _new_group(self._ranks, "gloo")
        return self._of_host

    def mesh(self, device_type: str) -> Any:
        from torch.distributed.device_mesh import DeviceMesh

        if device_type not in self._meshes:
            group: Any = self._host() if device_type == "cpu" else self._group
            self._meshes[device_type] = DeviceMesh.from_group(group, device_type)
        return self._meshes[device_type]

    def _of(self, x: Tensor) -> Any:
        return self._host() if x.is_cpu else self._group

    @contextmanager
    def _named(self) -> Iterator[None]:
        if not distributed.is_initialized():
            raise RuntimeError(
                "NGOptimizer: expected the process group of the parameters; got none: it was "
                "destroyed. Make the optimizer's last step before destroy_process_group()."
            )
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"NGOptimizer: a collective of ranks {self._ranks} failed, as when one of them "
                f"has ended: {str(error).strip().splitlines()[0]}"
            ) from error

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * len(self._ranks)
        with self._named():
            distributed.all_gather_object(found, value, self._host())
        return found

    def gather_numbers(self, number: int) -> list[int]:
        own = torch.tensor([number], device="cpu")
        found = [torch.empty_like(own) for _ in self._ranks]
        with self._named():
            distributed.all_gather(found, own, self._host())
        return torch.cat(found).tolist()

    def sum(self, total: Tensor) -> None:
        with self._named():
            distributed.all_reduce(total, group=self._of(total))

    def all_to_all(
        self, result: Tensor, sent: Tensor, received: list[int], counts: list[int]
    ) -> Callable[[], None]:
        with self._named():
            work: Any = distributed.all_to_all_single(
                result, sent, received, counts, self._of(sent), async_op=True
            )

        def wait() -> None:
            with self._named():
                work.wait()

        return wait


def _new_group(ranks: list[int], backend: str | None = None) -> Any:
    return distributed.new_group(ranks, backend=backend, use_local_synchronization=True)


def _check_alike(every: Sequence[Sequence[Held]]) -> None:
    """Raises ValueError if processes have different parameters, or in another order."""
    for rank, some in enumerate(every):
        if len(some) != len(every[0]):
            raise ValueError(
                f"NGOptimizer: expected the same parameters in all processes; got "
                f"{len(every[0])} in rank 0 and {len(some)} in rank {rank}"
            )
        for first, other in zip(every[0], some, strict=True):
            if first._replace(piece=other.piece) != other:
                raise ValueError(
                    "NGOptimizer: expected the same parameters in the same order in all "
                    f"processes; got '{first.name}' {first.shape} {first.dtype} in rank 0 "
                    f"where rank {rank} has '{other.name}' {other.shape} {other.dtype}"
                )


def _short(value: Any) -> str:
    return shorten(str(value), 200, placeholder=" ...")
