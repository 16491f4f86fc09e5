"""Which rank unrolls which optimizee, so that all ranks are done at about the same
time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

State = TypeVar("State")

# Work moves to another rank only where the slowest then has so much less of it.
WORTHWHILE = 0.95


class Costs:
    """Seconds that an inner step on every problem takes, the mean of what was measured."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = defaultdict(float)
        self._steps: dict[int, int] = defaultdict(int)

    def measured(self, problem: int, steps: int, seconds: float) -> None:
        self._seconds[problem] += seconds
        self._steps[problem] += steps

    def of(self, problem: int, steps: int) -> float:
        """Seconds of so many steps; where none was measured, as on the mean problem."""
        known = [self._of_step(one) for one in self._steps]
        if problem in self._steps:
            return steps * self._of_step(problem)
        return steps * (sum(known) / len(known) if known else 1.0)

    def _of_step(self, problem: int) -> float:
        return self._seconds[problem] / self._steps[problem]


def shared_out(costs: Sequence[float], owners: Sequence[int], count: int) -> list[int]:
    """The rank, below `count`, that each item is for: as `owners` says where that is
    good enough.

    Else the most expensive item first, each for the rank that has the least to do
    (Graham 1969).
    """
    loads, found = [0.0] * count, [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        found[item] = loads.index(min(loads))
        loads[found[item]] += costs[item]
    if max(loads) < WORTHWHILE * max(_loads(costs, owners, count)):
        return found
    return list(owners)


def _loads(costs: Sequence[float], owners: Sequence[int], count: int) -> list[float]:
    """What every rank has to do."""
    loads = [0.0] * count
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return loads


def on_device(state: State, device: torch.device) -> State:
    """A pytree of tensors, which may be of another rank's device."""
    return tree_map_only(Tensor, lambda values: values.to(device), state)
