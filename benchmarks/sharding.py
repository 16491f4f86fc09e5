"""Counts the steps of the default on several ranks: kernels, bytes and memory.

    python -m benchmarks.sharding --output results/sharding.json

Parameters, gradients and state are on torch's meta device, divided by rows as in FSDP2,
or with `process_group=` under DDP. The ranks step one after the other in a fake process
group, whose collectives are counted and send nothing. Weights are float32. Steps are
those of one cycle of renewals, late in a training run.

All numbers are maxima over ranks. kernels: an estimate of CUDA kernels of a step, the
mean over the cycle. collectives: of a step. sent_mb, received_mb: of a step.
sent_share: relative to the gradients and updates of a rank's parts. state_share:
relative to an equal share of the state of one process; mean_share: the same for the
mean over ranks. memory_gb: weights, gradients, state and transient memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from statistics import fmean
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore
from tqdm import tqdm

from benchmarks.launches import Counts, quiet
from benchmarks.records import Record, parser_of, table, write
from benchmarks.shapes import Gpt, Llama
from benchmarks.step import HORIZON, LATE, cycle
from ngopt import NGOptimizer
from ngopt.shard_layout import Piece, as_dtensor

FSDP, DDP, ALONE = "FSDP2", "DDP", "one process"
COLLECTIVES = "all_gather", "all_gather_object", "all_reduce", "all_to_all_single"
MB, GB = 1e6, 1e9


def tied_gpt2() -> nn.Module:
    model = Gpt(50257, 1024, 768, 12, 12)
    model.lm_head.weight = model.wte.weight
    return model


class Case(NamedTuple):
    """A network and the ranks that train it."""

    network: str
    division: str
    ranks: int


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2 124M": tied_gpt2,
    "Llama 7B": partial(Llama, 32000, 4096, 32, 11008, 32),
}
# With DDP, weights and gradients of 7B leave no room for activations.
CASES = (
    Case("GPT-2 124M", ALONE, 1),
    Case("GPT-2 124M", FSDP, 8),
    Case("GPT-2 124M", FSDP, 64),
    Case("GPT-2 124M", DDP, 8),
    Case("GPT-2 124M", DDP, 64),
    Case("Llama 7B", ALONE, 1),
    Case("Llama 7B", FSDP, 8),
    Case("Llama 7B", FSDP, 64),
)


class RankSteps(NamedTuple):
    """Counts of one rank in a cycle of renewals.

    kernels: mean of the steps. collectives: those of each step. sent, received: bytes
    of each step. state: bytes. transient: maximum bytes that a step allocates.
    """

    kernels: float
    collectives: list[int]
    sent: list[int]
    received: list[int]
    state: int
    transient: int


class Group:
    """Ranks that train a network together.

    division: FSDP, each rank has rows of every parameter; DDP, each rank has all of
    them; ALONE, one process.
    """

    def __init__(self, make: Callable[[], nn.Module], division: str, size: int):
        self.division, self.size = division, size
        with torch.device("meta"):
            self.shapes = {name: p.shape for name, p in make().named_parameters()}
        # the objects that describe each rank's parts, exchanged before the first step
        self._descriptions = []
        if division != ALONE:
            self._descriptions = list(map(self._description, range(size)))

    def stored_shape(self, name: str, rank: int) -> torch.Size:
        """The shape of a rank's part of a parameter."""
        shape = self.shapes[name]
        if self.division != FSDP:
            return shape
        return torch.Size(Piece.full(shape).chunk(0, rank, self.size).shape)

    def stored_bytes(self, rank: int) -> int:
        """Bytes of a rank's parts of all parameters."""
        numel = sum(self.stored_shape(name, rank).numel() for name in self.shapes)
        return torch.float32.itemsize * numel

    def parameters(self, rank: int) -> list[tuple[str, Parameter]]:
        """A rank's parts of all parameters, with their names."""
        mesh: Any = None
        if self.division == FSDP:
            # layouts are cached for equal meshes, so meshes of ranks differ in name
            mesh = init_device_mesh(
                "cpu", (self.size,), mesh_dim_names=(f"rank {rank}",)
            )
        named = []
        for name, shape in self.shapes.items():
            p = torch.empty(shape, device="meta")
            if mesh is not None:
                stored = p.new_empty(self.stored_shape(name, rank))
                p = as_dtensor(stored, mesh, [Shard(0)], p)
            named.append((name, Parameter(p)))
        return named

    def _optimizer(self, rank: int) -> NGOptimizer:
        """A new optimizer of a rank's parameters."""
        group = distributed.group.WORLD if self.division == DDP else None
        return NGOptimizer(
            self.parameters(rank), lr=0.0, total_steps=HORIZON, process_group=group
        )

    def _description(self, rank: int) -> Any:
        """The object that a rank contributes to the first gathering."""
        collectives = Collectives(rank, self.size)
        with self.as_rank(rank, collectives), quiet(), suppress(_FirstGathering):
            self._optimizer(rank).step()
        return collectives.description

    @contextmanager
    def as_rank(self, rank: int, collectives: "Collectives") -> Iterator[None]:
        """Makes this process a rank of the group."""
        if self.division == ALONE:
            yield
            return
        distributed.init_process_group(
            "fake", rank=rank, world_size=self.size, store=FakeStore()
        )
        counted = {name: getattr(collectives, name) for name in COLLECTIVES}
        try:
            with patch.multiple(distributed, **counted):
                yield
        finally:
            distributed.destroy_process_group()

    def steps(self, rank: int) -> RankSteps:
        """Steps of a rank, late in a training run."""
        collectives = Collectives(rank, self.size, self._descriptions)
        kernels, calls, sent, received = [], [], [], []
        transient = 0
        with self.as_rank(rank, collectives), quiet():
            optimizer = self._optimizer(rank)
            _move_to_late_step(optimizer)
            for _ in range(cycle(optimizer)):
                collectives.begin_step()
                with DeviceCounts() as counts:
                    optimizer.step()
                kernels.append(counts.kernels)
                calls.append(collectives.calls)
                sent.append(collectives.sent)
                received.append(collectives.received)
                transient = max(transient, counts.memory.peak)
        state = state_bytes(optimizer)
        return RankSteps(fmean(kernels), calls, sent, received, state, transient)


def state_bytes(optimizer: NGOptimizer) -> int:
    """Bytes of a rank's state without scalars, which every rank has."""
    tensors = chain.from_iterable(map(dict.values, optimizer.state.values()))
    return sum(x.nbytes for x in tensors if x.dim())


def _move_to_late_step(optimizer: NGOptimizer) -> None:
    """Allocates gradients and state, and makes the step before the `LATE`th."""
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
    """`Counts` that raises an error for collectives that are not counted."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "c10d" in func.namespace:
            raise RuntimeError(f"expected one of {COLLECTIVES}; got {func}")
        return super().__torch_dispatch__(func, types, args, kwargs)


class _FirstGathering(Exception):
    """Raised when a rank contributes its description to the first gathering."""


class Collectives:
    """Replaces functions of `torch.distributed`, and counts their calls and bytes.

    calls, sent, received: those of a step. description: the object that this rank
    contributes to the first gathering.
    """

    def __init__(self, rank: int, size: int, descriptions: Sequence[Any] | None = None):
        """descriptions: those of all ranks; None: raises at the first gathering."""
        self._rank, self._size, self._descriptions = rank, size, descriptions
        self.description: Any = None
        self.begin_step()

    def begin_step(self) -> None:
        self.calls = self.sent = self.received = 0

    def all_gather_object(self, gathered: list[Any], value: Any, group: Any) -> None:
        if self._descriptions is None:
            self.description = value
            raise _FirstGathering
        gathered[:] = self._descriptions

    def all_gather(self, gathered: list[Tensor], value: Tensor, group: Any) -> None:
        """Gathers numbers on the host, which are equal on all ranks."""
        assert value.is_cpu
        for x in gathered:
            x.copy_(value)
        self.calls += 1

    def all_reduce(self, total: Tensor, group: Any) -> None:
        moved = 2 * total.nbytes * (self._size - 1) // self._size
        self.calls += 1
        self.sent += moved
        self.received += moved

    def all_to_all_single(
        self,
        result: Tensor,
        sent: Tensor,
        received_counts: list[int],
        sent_counts: list[int],
        group: Any,
        async_op: bool,
    ) -> Any:
        assert async_op
        assert result.dtype == sent.dtype  # required by torch
        to_others = sum(sent_counts) - sent_counts[self._rank]
        from_others = sum(received_counts) - received_counts[self._rank]
        self.calls += 1
        self.sent += to_others * sent.itemsize
        self.received += from_others * sent.itemsize
        return SimpleNamespace(wait=lambda: None)


def record_of(
    case: Case, group: Group, ranks: Sequence[RankSteps], whole_state: int
) -> Record:
    """The row of the table. whole_state: bytes of the state of one process."""
    state = [rank.state for rank in ranks]
    share = whole_state / group.size
    sent = max(max(rank.sent) for rank in ranks)
    stored = max(map(group.stored_bytes, range(group.size)))
    transient = max(rank.transient for rank in ranks)
    return {
        **case._asdict(),
        "kernels": round(max(rank.kernels for rank in ranks)),
        "collectives": max(max(rank.collectives) for rank in ranks),
        "sent_mb": sent / MB,
        "received_mb": max(max(rank.received) for rank in ranks) / MB,
        "sent_share": sent / (2 * stored),
        "state_gb": max(state) / GB,
        "state_share": max(state) / share,
        "mean_share": fmean(state) / share,
        "memory_gb": (2 * stored + max(state) + transient) / GB,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--most", type=int, default=64, help="maximum number of ranks")
    options = parser.parse_args(arguments)
    networks, most = options.networks, options.most
    cases = [case for case in CASES if case.network in networks and case.ranks <= most]
    whole_states: dict[str, int] = {}
    steps: list[Record] = []
    with tqdm(total=sum(case.ranks for case in cases), unit="rank") as progress:
        for case in cases:
            group = Group(NETWORKS[case.network], case.division, case.ranks)
            ranks = []
            for rank in range(case.ranks):
                ranks.append(group.steps(rank))
                progress.update()
            # the first case of a network has one process
            whole_state = whole_states.setdefault(case.network, ranks[0].state)
            steps.append(record_of(case, group, ranks, whole_state))
            write(options.output, steps=steps)
    print(table(steps))


if __name__ == "__main__":
    main()
