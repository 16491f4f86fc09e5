"""Steps of AdamW and Muon on the ranks of a group, counted from their equations.

AdamW is fused: it reads weights, gradients and moments of a rank's parts once and
writes them once, without communication.

Muon is as in its distributed versions, for matrices that are no tables; the rest has
AdamW. A rank updates the momentum of its parts, in float32. Each matrix has one owner:
large ones first, to the rank with the fewest FLOPs. Momentum travels to owners and
orthogonalized changes travel back in bfloat16, while other matrices are computed; those
of one shape travel together, and an owner multiplies its own in one batch. A
Newton-Schulz iteration of X (m, n), m <= n, is

    A = X X^T,  B = b A + c A A,  X <- a X + B X        4 m^2 n + 2 m^3 FLOPs

With DDP owners have the momentum, and only changes travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import NamedTuple

import torch

from benchmarks.cost_model import CHUNK, CHUNKS, MEMORY, PRODUCTS
from benchmarks.sharding.timeline import Log
from ngopt import parameter_roles
from ngopt.distributed import ownership
from ngopt.distributed.ownership import Cost

ITERATIONS = 5
RATE = PRODUCTS[torch.bfloat16]
# Tensors of a launch of fused AdamW on CUDA, with four lists.
TENSORS = 36

# Bytes an element: float32 weights p, gradients g and moments; bfloat16 u.
ADAMW = 7 * 4  # reads p, g and two moments; writes all but g
ADAMW_STATE = 2 * 4
MOMENTUM = 3 * 4 + 2  # reads g and m; writes m and u
MOMENTUM_STATE = 4
CHANGE = 2 * 4 + 2  # reads p and u; writes p
COPY = 2 * (2 + 2)  # of parts of a matrix to the matrix, and back
HALF = 2
FOREACH = 3  # launches of `torch._foreach_*`, for momentum and for changes

Shape = tuple[int, ...]


class Parameters(NamedTuple):
    """Shapes of a network's parameters, and of the parts that each rank has of them."""

    wholes: dict[str, Shape]
    parts: Sequence[dict[str, Shape]]
    is_copied: bool  # whether each rank has all of all


class Peer(NamedTuple):
    """What a rank does in a step, and bytes of its state."""

    log: Log
    state: int


def adamw(parameters: Parameters) -> list[Peer]:
    """The step of every rank."""
    found = []
    for parts in parameters.parts:
        log = Log()
        _add_adamw(log, [prod(shape) for shape in parts.values()])
        log.end()
        numel = sum(map(prod, parts.values()))
        found.append(Peer(log, ADAMW_STATE * numel))
    return found


def muon(parameters: Parameters) -> list[Peer]:
    """The step of every rank."""
    matrices = matrices_of(parameters.wholes)
    owners = owners_of(parameters.wholes, matrices, len(parameters.parts))
    rounds: dict[Shape, list[str]] = {}
    for name in matrices:
        rounds.setdefault(parameters.wholes[name], []).append(name)
    ranks = range(len(parameters.parts))
    return [
        _MuonRank(parameters, owners, list(rounds.values()), rank).step()
        for rank in ranks
    ]


def matrices_of(shapes: dict[str, Shape]) -> list[str]:
    """Names of what Muon updates: all but tables, the output layer and vectors."""
    named = [
        (name, torch.empty(shape, device="meta")) for name, shape in shapes.items()
    ]
    roles = parameter_roles(named)
    is_other = "embedding", "output"
    return [
        name
        for name, shape in shapes.items()
        if len(shape) > 1 and roles[name].role not in is_other
    ]


def owners_of(
    shapes: dict[str, Shape], matrices: Sequence[str], size: int
) -> dict[str, int]:
    costs = [Cost(newton_schulz_flops(shapes[name]), 0) for name in matrices]
    ranks = ownership.owners_of(costs, size, [None] * len(costs))
    return dict(zip(matrices, ranks, strict=True))


def newton_schulz_flops(shape: Shape) -> int:
    m, n = sorted((shape[0], prod(shape[1:])))
    return ITERATIONS * (4 * m**2 * n + 2 * m**3)


def newton_schulz_seconds(shape: Shape, count: int) -> float:
    """Seconds of the products, and of the norm, of `count` matrices in a batch."""
    m, n = sorted((shape[0], prod(shape[1:])))
    products = [  # FLOPs and elements moved
        (2 * m * m * n, m * n + m * m),
        (2 * m**3, 3 * m * m),
        (2 * m * m * n, m * m + 3 * m * n),
    ]
    seconds = HALF * 3 * m * n / MEMORY
    for flops, moved in products:
        seconds += ITERATIONS * max(flops / RATE, HALF * moved / MEMORY)
    return count * seconds


def _add_adamw(log: Log, numels: Sequence[int]) -> None:
    chunks = sum(ceil(numel / CHUNK) for numel in numels)
    launches = max(ceil(chunks / CHUNKS), ceil(len(numels) / TENSORS))
    log.work(ADAMW * sum(numels) / MEMORY, launches)


@dataclass
class _MuonRank:
    parameters: Parameters
    owners: dict[str, int]
    rounds: list[list[str]]  # matrices that travel together, of one shape
    rank: int

    def __post_init__(self) -> None:
        self.parts = self.parameters.parts[self.rank]
        self.is_alone = len(self.parameters.parts) == 1

    def step(self) -> Peer:
        log = Log()
        own = [self._with_momentum(some) for some in self.rounds]
        log.work(MOMENTUM * sum(own) / MEMORY, FOREACH)
        arriving = [self._start(log, 0, to_owners=True)]
        leaving: list[int | None] = []
        for number, some in enumerate(self.rounds):
            if number + 1 < len(self.rounds):
                arriving.append(self._start(log, number + 1, to_owners=True))
            self._wait(log, arriving[number])
            self._orthogonalize(log, some)
            leaving.append(self._start(log, number, to_owners=False))
            if number:
                self._change(log, number - 1, leaving)
        self._change(log, len(self.rounds) - 1, leaving)
        others = [prod(x) for name, x in self.parts.items() if name not in self.owners]
        _add_adamw(log, others)
        log.end()
        return Peer(log, MOMENTUM_STATE * sum(own) + ADAMW_STATE * sum(others))

    def _with_momentum(self, some: Sequence[str]) -> int:
        """Elements whose momentum this rank has."""
        if self.parameters.is_copied:
            some = [name for name in some if self.owners[name] == self.rank]
        return sum(prod(self.parts[name]) for name in some)

    def _start(self, log: Log, number: int, to_owners: bool) -> int | None:
        if self.is_alone or (to_owners and self.parameters.is_copied):
            return None
        out = into = 0  # elements of this rank's parts, and of others' parts
        for name in self.rounds[number]:
            part = prod(self.parts[name])
            if self.owners[name] == self.rank:
                into += self._whole_parts(name) - part
            else:
                out += part
        sent, received = (out, into) if to_owners else (into, out)
        return log.start(HALF * sent, HALF * received)

    def _whole_parts(self, name: str) -> int:
        """Elements of the parts of all ranks."""
        return sum(prod(parts[name]) for parts in self.parameters.parts)

    def _wait(self, log: Log, number: int | None) -> None:
        if number is not None:
            log.wait(number)

    def _orthogonalize(self, log: Log, some: Sequence[str]) -> None:
        count = sum(self.owners[name] == self.rank for name in some)
        if count:
            shape = self.parameters.wholes[some[0]]
            copied = 0 if self.is_alone else COPY * count * prod(shape)
            seconds = newton_schulz_seconds(shape, count) + copied / MEMORY
            log.work(seconds, 3 * ITERATIONS + 4)

    def _change(self, log: Log, number: int, leaving: Sequence[int | None]) -> None:
        self._wait(log, leaving[number])
        numel = sum(prod(self.parts[name]) for name in self.rounds[number])
        log.work(CHANGE * numel / MEMORY, FOREACH)
