"""Eigenbases of Kronecker factors: renewal without QR, and its schedule.

A basis Q follows the eigenvectors of its factor P by rotations. With S = Q^T P Q,

    A_ij = S_ij / (max(S_ii, S_jj) + lift) where S_jj >= S_ii,    A_ji = -A_ij
    Q <- Q exp(A), as Q (I + A + A^2 / 2) and a Newton-Schulz step

To first order this is one step of orthogonal iteration (SOAP, Vyas et al. 2024, Alg. 4)
without its QR. Columns stay in their places, and so do second moments. Where rows and
columns of P are zero, Q does not change.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.roles.buckets import MatrixLayout

LIFT = 1e-3  # in largest eigenvalues: directions with smaller ones are noise
MAX_ANGLE = 1.25  # of a rotation: largest singular value of A
TINY = 1e-30
# The renewals of one size cost at least as much as that of a basis with MIN_ROWS rows.
# They are distributed over steps if they cost more than MAX_TOGETHER times as much.
MIN_ROWS, MAX_TOGETHER = 80, 4
INTERVALS = 2, 5, 10  # choices of steps between two renewals of a basis
CPU_INTERVALS = 2, 3, 5, 7, 10
# CPUs: largest ratio of multiplications of renewals to those of all other products, of
# which no more than MAX_PRODUCTS count.
MAX_RATIO, MAX_PRODUCTS = 1.25, 2e8
MAX_SIZES = 3  # accelerators: sizes of bases that are renewed in one step
ROUNDS = 8  # steps after which rounds of renewals become one step longer, at first


def renewed(factor: Tensor, basis: Tensor) -> Tensor:
    """Bases (b, n, n) one step nearer to the eigenvectors of the factors (b, n, n)."""
    s = torch.bmm(basis.mT, torch.bmm(factor, basis))
    values = s.diagonal(dim1=1, dim2=2).clamp(min=TINY)  # less than 0 by rounding
    rows = values.unsqueeze(2)
    columns = values.unsqueeze(1)
    lift = rows.amax(1, keepdim=True)
    a = torch.maximum(rows, columns).add_(lift, alpha=LIFT).copysign_(columns - rows)
    s = s.div_(a).triu(1)
    a = s - s.mT
    s = torch.bmm(a, a)
    # |A|_2^2 <= |A A|_F: never too small, as an estimate by a power method can be
    bound = torch.linalg.vector_norm(s, dim=(1, 2), keepdim=True)
    shrink = bound.clamp(min=MAX_ANGLE**2).rsqrt() * MAX_ANGLE
    s = s.mul_(shrink / 2).add_(a).mul_(shrink)
    q = torch.baddbmm(basis, basis, s)
    squares = torch.bmm(q.mT, q)
    return torch.baddbmm(q, q, squares, beta=1.5, alpha=-0.5)  # Newton-Schulz


def renewal_interval(layouts: Iterable[MatrixLayout], device: torch.device) -> int:
    """Steps between two renewals of a basis: the fewest that are cheap.

    CPUs are bound by FLOPs (`MAX_RATIO`), accelerators by launches (`MAX_SIZES`).
    """
    renewal = others = 0
    sizes = set()
    for layout in layouts:
        others += layout.products
        for axis in layout.axes:
            renewal += 6 * layout.shape[0] * axis.parts * axis.size**3
            sizes.add(axis.size)
    if device.type == "cpu":
        intervals = CPU_INTERVALS
        cost = renewal / MAX_RATIO / min(max(others, 1), MAX_PRODUCTS)
    else:
        intervals = INTERVALS
        cost = len(sizes) / MAX_SIZES
    return next((every for every in intervals if cost <= every), intervals[-1])


def renewal_positions(counts: Mapping[int, int]) -> dict[int, list[float]]:
    """Position of each basis in a round of renewals, in (0, 1), by size.

    counts: number of bases of every size. A round renews one size after the other;
    bases of a size that costs little are renewed together.
    """
    costs = {n: max(count * n**3, MIN_ROWS**3) for n, count in counts.items()}
    total = sum(costs.values())
    positions = {}
    start = 0.0
    for n, count in counts.items():
        share = costs[n] / total
        shares = [0.5] * count
        if costs[n] > MAX_TOGETHER * MIN_ROWS**3:
            shares = [(k + 0.5) / count for k in range(count)]
        positions[n] = [start + share * x for x in shares]
        start += share
    return positions


class Renewal(NamedTuple):
    """Eigenbases of one size that are renewed in a step."""

    size: int
    indices: slice
    mask: Tensor | None = None  # (count, 1, 1): 1 where a basis is renewed; None: all


class RenewalSchedule:
    """The bases that are renewed at a step: about the same work at every step.

    Args:
        positions: of the bases of every size, see `renewal_positions`.
        every: steps between two renewals of a basis, once rounds are that long.
    """

    def __init__(self, positions: Mapping[int, Sequence[float]], every: int):
        self.every = every
        self.positions = positions
        self._due: dict[tuple[int, int], list[Renewal]] = {}  # by length and step

    def at(self, step: int) -> list[Renewal]:
        """Each basis once in a round of steps; the first rounds are one step long."""
        length = min(1 + step // ROUNDS, self.every)  # of the round
        place = step % length
        if (length, place) not in self._due:
            renewals = self._due[length, place] = []
            for size, positions in self.positions.items():
                is_due = [place / length <= x < (place + 1) / length for x in positions]
                renewals += [Renewal(size, run) for run in _runs(is_due)]
        return self._due[length, place]


def _runs(is_due: Sequence[bool]) -> Iterator[slice]:
    """Slices of consecutive bases that are due."""
    start = 0
    for due, run in groupby(is_due):
        end = start + len(list(run))
        if due:
            yield slice(start, end)
        start = end
