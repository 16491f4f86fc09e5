"""Assigns optimizees to ranks, so that all ranks finish at about the same time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

# Reassign only if the slowest rank then has at most this share of its work.
MAXIMUM_SHARE = 0.95


class StepCosts:
    """Mean seconds of an inner step on every problem, as measured."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = defaultdict(float)
        self._steps: dict[int, int] = defaultdict(int)

    def add(self, problem: int, steps: int, seconds: float) -> None:
        self._seconds[problem] += seconds
        self._steps[problem] += steps

    def seconds(self, problem: int, steps: int) -> float:
        """Seconds of so many steps; of a problem without measurement, the mean."""
        known = [self._of_step(one) for one in self._steps]
        if problem in self._steps:
            return steps * self._of_step(problem)
        return steps * (sum(known) / len(known) if known else 1.0)

    def _of_step(self, problem: int) -> float:
        return self._seconds[problem] / self._steps[problem]


def assign_ranks(
    costs: Sequence[float], owners: Sequence[int], count: int
) -> list[int]:
    """The rank, below `count`, of each item: `owners` if that is balanced enough.

    Else the most expensive item first, each to the rank with the least work (Graham
    1969).
    """
    loads, found = [0.0] * count, [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        found[item] = loads.index(min(loads))
        loads[found[item]] += costs[item]
    before = [0.0] * count
    for cost, owner in zip(costs, owners, strict=True):
        before[owner] += cost
    return found if max(loads) < MAXIMUM_SHARE * max(before) else list(owners)
