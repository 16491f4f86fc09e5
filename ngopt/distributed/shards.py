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

from ngopt.distributed.ownership import Cost, owners_of
from ngopt.distributed.pieces import Held, Piece, is_dtensor, piece_of, place_of, real


class Shards:
    """Which process holds what of every parameter, and which owns it.

    pieces: by rank and parameter. alone: parameters that are no DTensors beside some
    that are: each process updates its own, as other optimizers do. owners: ranks, set
    by `divide`. counts: of which parameters this process' part counts in sums over all
    elements, (n,) bool: each part does in one process.

    Ranks are those of the group, whose order is that of the mesh.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        group: Any,
        known: Mapping[Tensor, int],
    ):
        """named: parameters, the same in all processes, in this order.

        group: their processes, where no parameter is a DTensor; None: those of the
        mesh. known: owners of parameters that have a state.

        Raises ValueError in all processes if they have different parameters.
        """
        params = [p for _, p in named]
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
        self.owners: list[int] = []
        self._alone = torch.tensor(self.alone, dtype=torch.bool, device="cpu")
        whole = [Piece((0,) * len(shape), shape) for shape in self.shapes]
        # whether sums over parts are those over parameters
        self.has_parts = any(some != whole for some in self.pieces)

    def divide(self, costs: Sequence[Cost]) -> None:
        """Decides who owns what, once: owners have the state, whatever costs become."""
        if self.owners:
            return
        own = [self.rank if alone else None for alone in self.alone]
        shared = [i for i, alone in enumerate(self.alone) if not alone]
        known = [self._known[i] for i in shared]
        found = owners_of([costs[i] for i in shared], self.size, known)
        for i, rank in zip(shared, found, strict=True):
            own[i] = rank
        self.owners = [self.rank if rank is None else rank for rank in own]
        counts = [self.rank in dict(self.sources(i)) for i in range(len(own))]
        self.counts = torch.tensor(counts, dtype=torch.bool, device="cpu")

    def of(self, parameters: Sequence[int]) -> Shards:
        """Some of the parameters."""
        found = copy(self)
        numbers = list(parameters)
        for name in ("alone", "shapes", "owners"):
            values = getattr(self, name)
            setattr(found, name, [values[i] for i in numbers])
        found.pieces = [[pieces[i] for i in numbers] for pieces in self.pieces]
        found.counts, found._alone = self.counts[numbers], self._alone[numbers]
        return found

    def with_pieces(
        self,
        shapes: Sequence[tuple[int, ...]],
        owners: Sequence[int],
        pieces: Sequence[Sequence[Piece]],
    ) -> Shards:
        """The same processes and other values, none of them alone."""
        found = copy(self)
        found.shapes, found.owners = list(shapes), list(owners)
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

    def sources(self, i: int) -> Iterator[tuple[int, Piece]]:
        """(rank, what it holds) of ranks that together hold all of a parameter: of those
        that hold the same, the nearest to its owner in the mesh."""
        at = self._coordinates
        owner = at[self.owners[i]]

        def distance(rank: int) -> tuple[int, int]:
            return sum(a != b for a, b in zip(at[rank], owner, strict=True)), rank

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
        """Values that one process has of each parameter, and others 0 -> of all, (k, n)."""
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
