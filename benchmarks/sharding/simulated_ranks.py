"""Steps of the default on the ranks of a group, counted in one process.

Parameters, gradients and state are on torch's meta device. The ranks step one after the
other in a fake process group, whose collectives are logged and send nothing. Before the
first step ranks gather objects, which describe their parts. These objects are recorded
for all ranks before steps are counted.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.cost_model import Prediction, nbytes
from benchmarks.launches import HORIZON, LATE, Counts, quiet
from benchmarks.sharding.timeline import Log
from benchmarks.step import cycle
from ngopt import NGOptimizer
from ngopt.graph import NeuralGraph
from ngopt.roles.from_graph import roles_of
from ngopt.shard_layout import as_dtensor, whole

FSDP, DDP, ALONE = "FSDP2", "DDP", "one process"
COLLECTIVES = "all_gather", "all_gather_object", "all_reduce", "all_to_all_single"

Named = list[tuple[str, Parameter]]


class RankSteps(NamedTuple):
    """The steps of one rank in a cycle of renewals.

    parts: mean milliseconds of the device by parts of the cost model. state: bytes.
    transient: maximum bytes that a step allocates.
    """

    logs: list[Log]
    parts: dict[str, float]
    state: int
    transient: int

    def device_seconds(self) -> float:
        return sum(log.device_seconds for log in self.logs)


class Group:
    """Ranks that train a network together.

    division: FSDP, each rank has rows of every parameter; DDP, each rank has all of
    them; ALONE, one process.
    """

    def __init__(self, make: Callable[[], nn.Module], division: str, size: int):
        self.division, self.size = division, size
        with torch.device("meta"):
            self.shapes = {name: p.shape for name, p in make().named_parameters()}
        self._roles: Any = None  # the same for all ranks
        self._gathered = []
        if division != ALONE:
            self._gathered = list(map(self._first_gathered, range(size)))

    def held(self, name: str, rank: int) -> torch.Size:
        """The shape of a rank's part of a parameter."""
        shape = self.shapes[name]
        if self.division != FSDP:
            return shape
        return torch.Size(whole(shape).chunk(0, rank, self.size).shape)

    def held_bytes(self, rank: int) -> int:
        """Bytes of a rank's parts of all parameters."""
        numel = sum(self.held(name, rank).numel() for name in self.shapes)
        return torch.float32.itemsize * numel

    def parameters(self, rank: int) -> Named:
        """A rank's parts of all parameters."""
        mesh: Any = None
        if self.division == FSDP:
            # layouts are cached for equal meshes, so meshes of ranks differ in name
            names = (f"rank {rank}",)
            mesh = init_device_mesh("cpu", (self.size,), mesh_dim_names=names)
        found = []
        for name in self.shapes:
            own = torch.empty(self.shapes[name], device="meta")
            if mesh is not None:
                part = own.new_empty(self.held(name, rank))
                own = as_dtensor(part, mesh, [Shard(0)], own)
            found.append((name, Parameter(own)))
        return found

    def _optimizer(self, rank: int) -> NGOptimizer:
        """A new optimizer of a rank's parameters."""
        group = distributed.group.WORLD if self.division == DDP else None
        return NGOptimizer(
            self.parameters(rank), lr=0.0, total_steps=HORIZON, process_group=group
        )

    def _first_gathered(self, rank: int) -> Any:
        """The object that a rank contributes to the first gathering."""
        collectives = Collectives(rank, self.size)
        with self.as_rank(rank, collectives), quiet(), suppress(_FirstGathered):
            self._optimizer(rank).step()
        return collectives.value

    @contextmanager
    def as_rank(self, rank: int, collectives: "Collectives") -> Iterator[None]:
        """Makes this process a rank of the group."""
        if self.division == ALONE:
            yield
            return
        distributed.init_process_group(
            "fake", rank=rank, world_size=self.size, store=FakeStore()
        )
        logged = {name: getattr(collectives, name) for name in COLLECTIVES}
        cached_roles = patch("ngopt.soap.soap.roles_of", self._roles_of)
        try:
            with patch.multiple(distributed, **logged), cached_roles:
                yield
        finally:
            distributed.destroy_process_group()

    def _roles_of(self, graph: NeuralGraph) -> Any:
        if self._roles is None:
            self._roles = roles_of(graph)
        return self._roles

    def steps(self, rank: int) -> RankSteps:
        """Steps of a rank, late in a training."""
        collectives = Collectives(rank, self.size, self._gathered)
        parts: dict[str, float] = defaultdict(float)
        logs = []
        transient = 0
        with self.as_rank(rank, collectives), quiet():
            optimizer = self._optimizer(rank)
            _move_to_late_step(optimizer)
            every = cycle(optimizer)
            for _ in range(every):
                prediction = Prediction()
                collectives.begin(prediction)
                with DeviceCounts(prediction) as counts:
                    optimizer.step()
                collectives.end()
                logs.append(collectives.log)
                transient = max(transient, counts.memory.peak)
                for part, ms in prediction.milliseconds().items():
                    parts[part] += ms / every
        return RankSteps(logs, parts, state_bytes(optimizer), transient)


def state_bytes(optimizer: NGOptimizer) -> int:
    """Bytes of a rank's state without scalars, which every rank has."""
    total = 0
    for record in optimizer.state.values():
        for x in record.values():
            if x.dim():
                total += nbytes(x)
    return total


def _move_to_late_step(optimizer: NGOptimizer) -> None:
    """Allocates gradients and state, and steps `LATE` steps into a training."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.empty_like(p)
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    age = LATE - LATE % cycle(optimizer) - 1
    for record in optimizer.state.values():
        record["step"].fill_(age)
    optimizer.step()


class DeviceCounts(Counts):
    """`Counts` that raises an error for collectives that are not logged."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "c10d" in func.namespace:
            raise RuntimeError(f"expected one of {COLLECTIVES}; got {func}")
        return super().__torch_dispatch__(func, types, args, kwargs)


class _FirstGathered(Exception):
    """Raised when a rank contributes its value to the first gathering."""


class Collectives:
    """Replaces functions of `torch.distributed`, and logs their calls."""

    def __init__(self, rank: int, size: int, gathered: Sequence[Any] | None = None):
        """gathered: objects of all ranks; None: raises at the first gathering."""
        self._rank, self._size, self._gathered = rank, size, gathered
        self.value: Any = None  # that this rank contributes to the first gathering
        self.begin(Prediction())

    def begin(self, prediction: Prediction) -> None:
        """Begins the log of a step; prediction: counts work between collectives."""
        self.log, self._prediction = Log(), prediction
        self._seconds, self._launches = 0.0, 0

    def end(self) -> None:
        self._note_work()
        self.log.end()

    def _note_work(self) -> None:
        self._prediction.close()
        seconds = self._prediction.fused_seconds
        launches = self._prediction.fused_launches
        self.log.work(seconds - self._seconds, launches - self._launches)
        self._seconds, self._launches = seconds, launches

    def all_gather_object(self, found: list[Any], value: Any, group: Any) -> None:
        if self._gathered is None:
            self.value = value
            raise _FirstGathered
        found[:] = self._gathered

    def all_gather(self, found: list[Tensor], value: Tensor, group: Any) -> None:
        """Gathers numbers on the host, which are equal on all ranks."""
        assert value.is_cpu
        for x in found:
            x.copy_(value)
        self._note_work()
        self.log.on_host(self._size)

    def all_reduce(self, total: Tensor, group: Any) -> None:
        self._note_work()
        moved = 2 * nbytes(total) * (self._size - 1) // self._size
        self.log.wait(self.log.start(moved, moved))

    def all_to_all_single(
        self,
        result: Tensor,
        sent: Tensor,
        received: list[int],
        counts: list[int],
        group: Any,
        async_op: bool,
    ) -> "_Work":
        assert async_op
        assert result.dtype == sent.dtype  # required by torch
        self._note_work()
        sent_to_others = sum(counts) - counts[self._rank]
        received_from_others = sum(received) - received[self._rank]
        number = self.log.start(
            sent_to_others * sent.itemsize, received_from_others * sent.itemsize
        )
        return _Work(self, number)

    def wait(self, number: int) -> None:
        self._note_work()
        self.log.wait(number)


class _Work(NamedTuple):
    """An asynchronous collective."""

    collectives: Collectives
    number: int

    def wait(self) -> None:
        self.collectives.wait(self.number)
