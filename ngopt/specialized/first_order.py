"""Adam (Kingma and Ba 2015) and Muon (Jordan 2024) as update rules, with a schedule."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ngopt.functional import (
    BoundRule,
    Change,
    Gradients,
    Hyper,
    Record,
    UpdateRule,
    state_dtype,
)
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.newton_schulz import orthogonalized
from ngopt.roles.from_graph import roles_of
from ngopt.schedule import half_cosine, steps_so_far, with_horizon
from ngopt.soap.config import Measured
from ngopt.specialized.rates import BoundRates, Rates

SCHEDULES = "constant", "linear", "cosine"
WARMUP = 0.05  # share of the steps
EPSILON = 1e-8
STEP, MOMENTUM, SQUARE = "step", "exp_avg", "exp_avg_sq"
FIRST = "first_rms"  # of gradient and weights


@dataclass(frozen=True)
class FirstOrder(UpdateRule):
    """Adam on all parameters, or Muon on matrices and Adam on the others.

    An update of Muon has about the RMS of one of Adam, .2. The learning rate rises over
    the first 5 % of the steps; without a horizon it is constant.

    Attributes:
        schedule: One of `SCHEDULES`. multiplier: Of the learning rate; None: 1.

    Raises:
        ValueError: For another schedule.
    """

    uses_muon: bool = False
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: str = "linear"
    multiplier: Rates | None = None

    reads_connections = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"FirstOrder: expected a schedule of {', '.join(SCHEDULES)}; got "
                f"{self.schedule!r}"
            )

    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "FirstOrderRule":
        """See `UpdateRule.bind`; it computes in the dtype of the state."""
        with_muon = [False] * len(graph.parameters)
        if self.uses_muon:
            with_muon = [role.role == "matrix" for role in roles_of(graph)]
        positions, rates = range(len(graph.parameters)), None
        if self.multiplier is not None:
            rates = self.multiplier.bound(graph, positions, total_steps)
        return FirstOrderRule(self, with_muon, total_steps, rates)


@dataclass(eq=False)
class FirstOrderRule(BoundRule):
    """The rule on a graph.

    A record has `step`, () on the CPU, `exp_avg` and, without Muon, `exp_avg_sq`,
    shaped like the parameter; with rates that read gradients also `first_rms`, (2,).

    Args:
        with_muon: whether Muon trains each parameter.
    """

    rule: FirstOrder
    with_muon: Sequence[bool]
    total_steps: int | None = None
    rates: BoundRates | None = None

    def __post_init__(self) -> None:
        self._measures = self.rates is not None and self.rates.reads_gradients

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        records = []
        for p, with_muon in zip(params, self.with_muon, strict=True):
            zeros = torch.zeros_like(p, dtype=state_dtype(p), requires_grad=False)
            record = {STEP: torch.zeros((), device="cpu"), MOMENTUM: zeros}
            if not with_muon:
                record[SQUARE] = torch.zeros_like(zeros)
            if self._measures:
                record[FIRST] = zeros.new_zeros(2)
            records.append(record)
        return records

    def update(
        self,
        grads: Gradients,
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[list[Change]]:
        present = {i: grad for i, grad in enumerate(grads) if grad is not None}
        if not present:
            return
        records = {i: state[i] for i in present}
        if not in_place:
            for i, record in records.items():
                records[i] = {key: x.clone() for key, x in record.items()}
        height, progress, factors = 1.0, None, None
        now: Any = steps_so_far([x[STEP] for x in records.values()], self.total_steps)
        if self.total_steps is not None and not hyper.scheduled:
            height = height_at(self.rule.schedule, now, self.total_steps)
            progress = now / self.total_steps
        if self.rates is not None:
            measured = self._measured(present, records, params)
            factors = self.rates(measured, progress, {})
        changes = []
        for i, grad in present.items():
            direction = self._direction(i, records[i], grad.to(records[i][MOMENTUM]))
            if decay := hyper.weight_decay[i]:
                direction = direction + decay * params[i]
            rate: Any = self.rule.lr * height * hyper.lr[i]
            if factors is not None:
                rate = rate * factors[i]
            changes.append(Change(i, -rate * direction, records[i]))
        yield changes

    def _direction(self, i: int, record: Record, gradient: Tensor) -> Tensor:
        """The update before the learning rate; the record changes in place."""
        beta1, beta2 = self.rule.beta1, self.rule.beta2
        record[STEP] += 1
        momentum = record[MOMENTUM].lerp_(gradient, 1 - beta1)
        if self.with_muon[i]:
            matrix = gradient.lerp(momentum, beta1).flatten(1)  # Nesterov's
            scale = 0.2 * max(matrix.shape) ** 0.5
            return scale * orthogonalized(matrix).view_as(gradient)
        age = float(record[STEP])
        square = record[SQUARE].lerp_(gradient.square(), 1 - beta2)
        mean = momentum / (1 - beta1**age)
        return mean / ((square / (1 - beta2**age)).sqrt() + EPSILON)

    def _measured(
        self,
        present: dict[int, Tensor],
        records: dict[int, Record],
        params: Sequence[Tensor],
    ) -> Measured | None:
        """Now and in the first step; 1 for parameters without a gradient."""
        if not self._measures:
            return None
        like = next(iter(records.values()))[MOMENTUM]
        now, first = like.new_ones(2, len(params)), like.new_ones(2, len(params))
        for i, grad in present.items():
            values = [x.to(like).square().mean().sqrt() for x in (grad, params[i])]
            now[:, i] = torch.stack(values)
            if records[i][STEP] == 0:
                records[i][FIRST].copy_(now[:, i])
            first[:, i] = records[i][FIRST]
        return Measured(
            grad_rms=now[0],
            weight_rms=now[1],
            first=Measured(grad_rms=first[0], weight_rms=first[1]),
        )


def height_at(schedule: str, now: Any, total_steps: int) -> Any:
    """The share of the learning rate after `now` steps, with warm-up."""
    if schedule == "linear":
        return with_horizon(now, now, total_steps, WARMUP)
    rising = min((now + 1) / max(WARMUP * total_steps, 1), 1.0)
    if schedule == "constant":
        return rising
    return rising * half_cosine(min(now / total_steps, 1.0))
