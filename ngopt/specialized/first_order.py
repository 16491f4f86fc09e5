"""Adam (Kingma and Ba 2015) and Muon (Jordan 2024) as update rules, with a schedule."""
# pyright: reportPrivateImportUsage=false

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

KINDS = "adam", "muon"
SCHEDULES = "constant", "linear", "cosine"
WARMUP = 0.05  # share of the steps
EPSILON = 1e-8
STEP, MOMENTUM, SQUARE = "step", "exp_avg", "exp_avg_sq"
FIRST = "first_grad_rms", "first_weight_rms"


@dataclass(frozen=True)
class FirstOrder(UpdateRule):
    """Adam on all parameters, or Muon on matrices and Adam on the others.

    Without a horizon the learning rate is constant. Weight decay is decoupled. An
    update of Muon has about the RMS of one of Adam, .2.

    Attributes:
        kind: "adam" or "muon". schedule: one of `SCHEDULES`, after a warm-up over 5 %
            of the steps. rates: multiply the learning rate; None: 1.

    Raises:
        ValueError: For another kind or schedule, or a constant out of range.
    """

    kind: str = "adam"
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    schedule: str = "linear"
    rates: Rates | None = None

    reads_connections = False

    def __post_init__(self) -> None:
        expected = {
            "kind": self.kind in KINDS,
            "lr": self.lr > 0,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "schedule": self.schedule in SCHEDULES,
        }
        for name, is_valid in expected.items():
            if not is_valid:
                raise ValueError(
                    f"FirstOrder: {name}: expected one of {', '.join(KINDS)} as kind, "
                    f"of {', '.join(SCHEDULES)} as schedule, lr > 0 and betas within "
                    f"[0, 1); got {getattr(self, name)!r}"
                )

    def bind(
        self,
        graph: NeuralGraph,
        total_steps: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "FirstOrderRule":
        """See `UpdateRule.bind`; the dtype is that of the state."""
        uses_muon = [False] * len(graph.parameters)
        if self.kind == "muon":
            uses_muon = [role.role == "matrix" for role in roles_of(graph)]
        return FirstOrderRule(self, uses_muon, total_steps)


@dataclass(eq=False)
class FirstOrderRule(BoundRule):
    """The rule on a graph.

    A record has `step`, () float32 on the CPU, `exp_avg` and, without Muon,
    `exp_avg_sq`, shaped like the parameter; with rates, also `first_grad_rms` and
    `first_weight_rms`, ().

    Args:
        uses_muon: by parameter.
    """

    rule: FirstOrder
    uses_muon: Sequence[bool]
    total_steps: int | None = None

    def __post_init__(self) -> None:
        self._rates: BoundRates | None = None
        if self.rule.rates is not None and self.total_steps is not None:
            self._rates = self.rule.rates.bound(
                range(len(self.uses_muon)), self.total_steps
            )

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        records = []
        for p, uses_muon in zip(params, self.uses_muon, strict=True):
            zeros = torch.zeros_like(p, dtype=state_dtype(p), requires_grad=False)
            record = {STEP: torch.zeros((), device="cpu"), MOMENTUM: zeros}
            if not uses_muon:
                record[SQUARE] = torch.zeros_like(zeros)
            if self._rates is not None:
                record.update((key, zeros.new_zeros(())) for key in FIRST)
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
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if not present:
            return
        records = [state[i] for i in present]
        if not in_place:
            records = [{key: x.clone() for key, x in r.items()} for r in records]
        weights = [
            params[i].to(r[MOMENTUM]) for i, r in zip(present, records, strict=True)
        ]
        gradients = [grads[i].to(p) for i, p in zip(present, weights, strict=True)]  # type: ignore
        now = steps_so_far([record[STEP] for record in records], self.total_steps)
        for record in records:
            record[STEP] += 1
        directions = self._directions(present, records, gradients)
        rates: Any = self._learning_rates(present, now, hyper)
        if self._rates is not None and not hyper.scheduled:
            factors = self._factors(present, records, gradients, weights, now)
            rates = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
        changes = []
        for i, p, direction, rate, record in zip(
            present, weights, directions, rates, records, strict=True
        ):
            if hyper.weight_decay[i]:
                direction = direction + hyper.weight_decay[i] * p
            changes.append(Change(i, direction * -rate, record))
        yield changes

    def _learning_rates(
        self, present: Sequence[int], now: Any, hyper: Hyper
    ) -> list[Any]:
        height: Any = 1.0
        if self.total_steps is not None and not hyper.scheduled:
            height = height_at(self.rule.schedule, now, self.total_steps)
        return [self.rule.lr * height * hyper.lr[i] for i in present]

    def _directions(
        self,
        present: Sequence[int],
        records: Sequence[Record],
        gradients: Sequence[Tensor],
    ) -> list[Tensor]:
        """Updates before the learning rate; momenta and squares change in place."""
        momenta = [record[MOMENTUM] for record in records]
        torch._foreach_lerp_(momenta, gradients, 1 - self.rule.beta1)
        with_adam = [k for k, i in enumerate(present) if not self.uses_muon[i]]
        directions = list(momenta)
        if with_adam:
            squares = [records[k][SQUARE] for k in with_adam]
            own = [gradients[k] for k in with_adam]
            torch._foreach_mul_(squares, self.rule.beta2)
            torch._foreach_addcmul_(squares, own, own, 1 - self.rule.beta2)
            ages = [float(records[k][STEP]) for k in with_adam]
            unbiased = torch._foreach_div(
                squares, [1 - self.rule.beta2**age for age in ages]
            )
            torch._foreach_sqrt_(unbiased)
            torch._foreach_add_(unbiased, EPSILON)
            means = torch._foreach_div(
                [momenta[k] for k in with_adam],
                [1 - self.rule.beta1**age for age in ages],
            )
            torch._foreach_div_(means, unbiased)
            for k, mean in zip(with_adam, means, strict=True):
                directions[k] = mean
        by_shape: dict[torch.Size, list[int]] = {}
        for k, i in enumerate(present):
            if self.uses_muon[i]:
                by_shape.setdefault(momenta[k].shape, []).append(k)
        for alike in by_shape.values():
            nesterov = [gradients[k].lerp(momenta[k], self.rule.beta1) for k in alike]
            matrices = torch.stack(nesterov).flatten(2)
            scale = 0.2 * max(matrices.shape[1:]) ** 0.5
            for k, x in zip(alike, scale * orthogonalized(matrices), strict=True):
                directions[k] = x.view_as(momenta[k])
        return directions

    def _factors(
        self,
        present: Sequence[int],
        records: Sequence[Record],
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        now: Any,
    ) -> list[Tensor]:
        assert self._rates is not None and self.total_steps is not None
        measured = None
        if self._rates.reads_gradients:
            grad_rms, weight_rms = rms(gradients), rms(weights)
            for record, values in zip(
                records, zip(grad_rms, weight_rms, strict=True), strict=True
            ):
                for key, value in zip(FIRST, values, strict=True):
                    if record[STEP] == 1:
                        record[key].copy_(value)
            first = [torch.stack([r[key] for r in records]) for key in FIRST]
            measured = Measured(grad_rms, weight_rms, first=Measured(*first))
        return list(self._rates(measured, now / self.total_steps, {}, present))


def height_at(schedule: str, now: Any, total_steps: int) -> Any:
    """The share of the learning rate after `now` steps, with warm-up."""
    if schedule == "linear":
        return with_horizon(now, now, total_steps, WARMUP)
    rising = min((now + 1) / max(WARMUP * total_steps, 1), 1.0)
    if schedule == "constant":
        return rising
    return rising * half_cosine(min(now / total_steps, 1.0))


def rms(tensors: Sequence[Tensor]) -> Tensor:
    """Of all tensors, (n,)."""
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    numels = norms.new_tensor([max(x.numel(), 1) for x in tensors])
    return norms / numels.sqrt()
