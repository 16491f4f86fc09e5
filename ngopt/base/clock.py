"""How many gradients each parameter has had: as the host knows it, or as a compiled step does.

A number that changes from step to step would be compiled into the step, anew each time; so there it
is a tensor. Both clocks have the same methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.base.arrays import Column, at_most, column, on
from ngopt.base.measure import EARLY
from ngopt.base.schedule import steps_so_far
from ngopt.base.step import Turn
from ngopt.functional import Record

Numbers = Callable[[Any, Any], Sequence[Any]]
"""What belongs to a parameter's own step, so many steps into the training."""


class HostClock:
    """Numbers of Python.

    counts: (1, n) steps of the parameters. absent: of those without a gradient. total_steps: the
    horizon, past which the clock warns once.
    """

    def __init__(
        self, counts: Tensor, absent: Sequence[Tensor], total_steps: int | None
    ):
        self.steps = list(map(int, counts.tolist()[0]))
        self.now = steps_so_far([*self.steps, *absent], total_steps)
        self.is_settled = min(self.steps) > EARLY

    def steps_after(self) -> Column:
        """Steps of the parameters when this one is made."""
        return [step + 1 for step in self.steps]

    def at(self, numbers: Numbers, like: Column) -> list[Column]:
        """Columns of numbers that are given by steps; most parameters are at the same."""
        found = {step: numbers(step, self.now) for step in set(self.steps)}
        rows = [found[step] for step in self.steps]
        return [column(values, like) for values in zip(*rows, strict=True)]

    def turns(
        self,
        records: Sequence[Record],
        phases: Sequence[int | None],
        every: int,
    ) -> list[Turn]:
        """What is to be done with each parameter; for the phases see `_is_due`."""
        rows = zip(records, self.steps, phases, strict=True)
        return [
            Turn(
                record,
                step == 0,
                phase is not None and _is_due(step, phase, every),
            )
            for record, step, phase in rows
        ]


class TracedClock:
    """Tensors, for a step in which nothing is the first."""

    is_settled = True

    def __init__(
        self, counts: Tensor, absent: Sequence[Tensor], total_steps: int | None
    ):
        # counts are written in place
        self.steps = counts[0].to(torch.float64, copy=True)
        self.now = steps_so_far([*counts[0].unbind(), *absent], total_steps)

    def steps_after(self) -> Column:
        return self.steps + 1

    def at(self, numbers: Numbers, like: Any) -> list[Tensor]:
        found = [
            torch.as_tensor(values, dtype=like.dtype)
            for values in numbers(self.steps, self.now)
        ]
        return [
            on(values, like.device).expand(len(self.steps)) for values in found
        ]

    def turns(
        self,
        records: Sequence[Record],
        phases: Sequence[int | None],
        every: int,
    ) -> list[Turn]:
        own = self.steps.new_tensor([phase or 0 for phase in phases])
        is_due = _is_due(self.steps, own, every).unbind()
        return [
            Turn(record, False, due)
            for record, due in zip(records, is_due, strict=True)
        ]


def _is_due(step: Any, phase: Any, every: int) -> Any:
    """Whether bases are renewed: in turn, so that no step does it for all,
    and sooner in the beginning."""
    apart = at_most(1 + step // 8, every)
    return ((step + phase) % apart == 0) & (step > 0)
