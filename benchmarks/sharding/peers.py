"""Steps of AdamW and Muon on the ranks of a group, counted from their equations.

AdamW is fused: it reads and writes weights, gradients and moments of a rank's parts
once, without communication.

Muon is as in its distributed versions, for matrices other than embeddings and output
layers; other parameters use AdamW. A rank updates the momentum of its parts in float32.
Each matrix has one owner; large ones are assigned first, to the rank with the fewest
FLOPs. Momentum is sent to owners and orthogonalized updates are sent back in bfloat16,
while other matrices are computed. Matrices of one shape are sent together, and an owner
computes its own in one batch. A Newton-Schulz iteration of X (m, n), m <= n, is

    A = X X^T,  B = b A + c A A,  X <- a X + B X        4 m^2 n + 2 m^3 FLOPs

With DDP owners store the momentum, and only updates are sent.
"""

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
TENSORS = 36  # per launch of fused AdamW on CUDA, with four lists

# Bytes per element: float32 weights p, gradients g and moments; bfloat16 updates u.
ADAMW = 7 * 4  # reads p, g and two moments; writes all but g
ADAMW_STATE = 2 * 4
MOMENTUM = 3 * 4 + 2  # reads g and m; writes m and u
MOMENTUM_STATE = 4
CHANGE = 2 * 4 + 2  # reads p and u; writes p
COPY = 2 * (2 + 2)  # from the parts of a matrix to the matrix, and back
HALF = 2
FOREACH = 3  # launches of `torch._foreach_*`, for momentum and for updates

Shape = tuple[int, ...]


class Parameters(NamedTuple):
    """Shapes of a network's parameters, and of each rank's parts of them."""

    wholes: dict[str, Shape]
    parts: Sequence[dict[str, Shape]]
    is_copied: bool  # whether each rank has whole parameters


class Peer(NamedTuple):
    """The log of a rank's step, and bytes of its state."""

    log: Log
    state: int


def adamw(parameters: Parameters) -> list[Peer]:
    """The step of every rank."""
    peers = []
    for parts in parameters.parts:
        log = Log()
        numels = list(map(prod, parts.values()))
        _add_adamw(log, numels)
        log.end()
        peers.append(Peer(log, ADAMW_STATE * sum(numels)))
    return peers


def muon(parameters: Parameters) -> list[Peer]:
    """The step of every rank."""
    matrices = matrices_of(parameters.wholes)
    owners = owners_of(parameters.wholes, matrices, len(parameters.parts))
    rounds: dict[Shape, list[str]] = {}
    for name in matrices:
        rounds.setdefault(parameters.wholes[name], []).append(name)
    peers = []
    for rank in range(len(parameters.parts)):
        own = _MuonRank(parameters, owners, list(rounds.values()), rank)
        peers.append(own.step())
    return peers


def matrices_of(shapes: dict[str, Shape]) -> list[str]:
    """Names of Muon's parameters: all but embeddings, the output layer and vectors."""
    params = {}
    for name, shape in shapes.items():
        params[name] = torch.empty(shape, device="meta")
    matrices = []
    for name, role in parameter_roles(params.items()).items():
        if params[name].dim() > 1 and role.role not in ("embedding", "output"):
            matrices.append(name)
    return matrices


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
    """Seconds of the products and the norm of a batch of `count` matrices."""
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
    rounds: list[list[str]]  # matrices that are sent together, of one shape
    rank: int

    def __post_init__(self) -> None:
        self.parts = self.parameters.parts[self.rank]
        self.is_alone = len(self.parameters.parts) == 1

    def step(self) -> Peer:
        log = Log()
        momentum = sum(map(self._momentum_numel, self.rounds))
        log.work(MOMENTUM * momentum / MEMORY, FOREACH)
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
        return Peer(log, MOMENTUM_STATE * momentum + ADAMW_STATE * sum(others))

    def _momentum_numel(self, names: Sequence[str]) -> int:
        """Elements of the momentum of these matrices on this rank."""
        numel = 0
        for name in names:
            if not self.parameters.is_copied or self.owners[name] == self.rank:
                numel += prod(self.parts[name])
        return numel

    def _start(self, log: Log, number: int, to_owners: bool) -> int | None:
        if self.is_alone or (to_owners and self.parameters.is_copied):
            return None
        out = into = 0  # elements of this rank's parts, and of other ranks' parts
        for name in self.rounds[number]:
            part = prod(self.parts[name])
            if self.owners[name] == self.rank:
                whole = sum(prod(parts[name]) for parts in self.parameters.parts)
                into += whole - part
            else:
                out += part
        sent, received = (out, into) if to_owners else (into, out)
        return log.start(HALF * sent, HALF * received)

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
