"""Eigenbases of Kronecker factors: renewal by products alone, and when it is due.

A basis Q follows the eigenvectors of its factor P by rotations. With S = Q^T P Q,

    A_ij = S_ij / (max(S_ii, S_jj) + lift) where S_jj >= S_ii,    A_ji = -A_ij
    Q <- Q exp(A), as Q (I + A + A^2 / 2) and a Newton-Schulz step

which to first order is one step of orthogonal iteration (SOAP, Vyas et al. 2024,
Alg. 4) without its QR. Columns stay in their places, and so do second moments; rows and
columns of P that are zero leave Q as it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, groupby, islice, pairwise
from math import prod

import torch
from torch import Tensor

from ngopt.roles.kronecker_factors import MatrixLayout

LIFT = 1e-3  # in largest eigenvalues: directions of less are noise
LARGEST = 1.25  # singular value of A: angle of a rotation
TINY = 1e-30
# Renewals of one size cost at least as much as one of so many rows, for the calls.
CALLS = 80
EVERY = 2, 5, 10  # steps in which every basis is renewed once: a choice of these
# Multiplications of renewals on a CPU, in those of all other products, but HEAVY at
# most.
LOAD, HEAVY = 1.5, 2e9
FEW = 3  # sizes of bases, with launches of their own, to which one step may come
ROUNDS = 8  # steps after which the first rounds of renewals become longer


def renewed(factor: Tensor, basis: Tensor) -> Tensor:
    """Bases (b, n, n) one step nearer to the eigenvectors of the factors (b, n, n)."""
    s = torch.bmm(basis.mT, torch.bmm(factor, basis))
    values = s.diagonal(dim1=1, dim2=2).clamp(min=TINY)  # less than 0 by rounding
    rows, columns = values.unsqueeze(2), values.unsqueeze(1)
    lift = values.amax(1)[:, None, None]
    a = torch.maximum(rows, columns).add_(lift, alpha=LIFT).copysign_(columns - rows)
    s = s.div_(a).triu(1)
    a = s - s.mT
    s = torch.bmm(a, a)
    # |A|_2^2 <= |A A|_F: never too small, as an estimate by a power method can be
    bound = torch.linalg.vector_norm(s, dim=(1, 2), keepdim=True)
    shrink = LARGEST**2 / bound.clamp(min=LARGEST**2)
    a *= shrink.sqrt()
    s *= shrink / 2
    q = torch.baddbmm(basis, basis, a.add_(s))
    squares = torch.bmm(q.mT, q)
    return torch.baddbmm(q, q, squares, beta=1.5, alpha=-0.5)  # Newton-Schulz


def renewal_interval(layouts: Iterable[MatrixLayout], device: torch.device) -> int:
    """Steps in which every basis is renewed once: the fewest that are cheap.

    CPUs are bound by FLOPs (`LOAD`, `HEAVY`), accelerators by launches (`FEW` a step).
    """
    axes = [(layout, axis) for layout in layouts for axis in layout.axes]
    if device.type == "cpu":
        renewal = sum(6 * x.shape[0] * a.parts * a.size**3 for x, a in axes)
        others = sum(4 * prod(x.shape) * a.size for x, a in axes)  # 3 rotations, X X^T
        cost = renewal / LOAD / min(max(others, 1), HEAVY)
    else:
        cost = len({axis.size for _, axis in axes}) / FEW
    return next((every for every in EVERY if cost <= every), EVERY[-1])


def places_in_turn(counts: Mapping[int, int]) -> dict[int, list[float]]:
    """Where in a round of renewals each basis is, in (0, 1), by size.

    counts: of the bases of every size; one size after the other they make one round.
    """
    work = [[n**3 + CALLS**3 / count] * count for n, count in counts.items()]
    ends = list(accumulate(chain(*work), initial=0.0))
    places = iter([(a + b) / 2 / ends[-1] for a, b in pairwise(ends)])
    return {n: list(islice(places, k)) for n, k in counts.items()}


class RenewalSchedule:
    """Which bases are renewed at a step: in turn, about the same work at every step.

    places: of the bases of every size, see `places_in_turn`.
    """

    def __init__(
        self, places: Mapping[int, Sequence[float]], every: int, device: torch.device
    ):
        self.every, self._places = every, places
        pairs = places.items()
        self._on_device = {n: torch.tensor(own, device=device) for n, own in pairs}
        self._due: dict[tuple[int, int], list[tuple[int, slice]]] = {}  # by phase

    def _length(self, step: int) -> int:
        """Steps of the round."""
        return min(1 + step // ROUNDS, self.every)

    def phase(self, step: int) -> tuple[int, int] | None:
        """What is due, as a key; None if no later step is like this one."""
        length = self._length(step)
        is_once = ROUNDS / 2 < length < self.every
        return None if is_once else (length, step % length)

    def due(self, step: int) -> list[tuple[int, slice]]:
        """(size, those of its bases); all at the first steps, then fewer."""
        length = self._length(step)
        key = length, step % length
        if key not in self._due:
            ends = key[1] / length, (key[1] + 1) / length
            self._due[key] = [
                (size, run)
                for size, places in self._places.items()
                for run in _runs([ends[0] <= x < ends[1] for x in places])
            ]
        return self._due[key]

    def are_due(self, step: Tensor) -> dict[int, Tensor]:
        """The same, (count,) of every size, at a step that the host does not know."""
        length = (1 + step // ROUNDS).clamp(max=self.every)
        ends = step % length, step % length + 1
        turns = {size: x * length for size, x in self._on_device.items()}
        return {size: (x >= ends[0]) & (x < ends[1]) for size, x in turns.items()}


def _runs(chosen: Sequence[bool]) -> Iterator[slice]:
    """The chosen ones, as few slices."""
    start = 0
    for is_chosen, some in groupby(chosen):
        end = start + len(list(some))
        if is_chosen:
            yield slice(start, end)
        start = end
