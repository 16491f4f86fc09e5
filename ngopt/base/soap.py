"""The base rule of the default: SOAP (Vyas et al. 2024) with one setting for every network.

For a matrix G of gradients, L and R are running means of G G^T and G^T G with eigenvectors Q_L and
Q_R. Adam's second moment v is that of Q_L^T G Q_R, and the direction is

    u = Q_L [Q_L^T n Q_R / sqrt(v)] Q_R^T,   n: Nesterov's momentum.

What differs from SOAP: a basis is renewed after the update, so that it never contains the gradient
that it is applied to; factors belong to neurons, so that heads, gates and experts have their own;
gradients are divided by the size of the first, so that the scale of the loss changes nothing; one
far out of its running size is cut, one that is not finite left out; what never had a gradient does
not move; the step size follows fans, the present size of the weights, role and horizon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ngopt.base.arrays import as_tensor, column, columns, of_all, on
from ngopt.base.batch import Batch
from ngopt.base.clock import HostClock, TracedClock
from ngopt.base.config import SoapConfig
from ngopt.base.direction import corrections, init_direction, step_numbers
from ngopt.base.layout import MatrixLayout
from ngopt.base.measure import is_recalled, measure, root_mean_squares, sizes_at
from ngopt.base.modulation import (
    SIGNALS,
    Modulation,
    count_rows,
    modulated,
    row_signals,
)
from ngopt.base.plan import SIZE_KEYS, Plan, Planner, made_for
from ngopt.base.scale import relative_sizes, weight_sizes
from ngopt.base.schedule import average_weight, with_horizon, without_horizon
from ngopt.base.step import Shared, Step, shared
from ngopt.functional import AVERAGE, Change, Hyper, Record, state_dtype
from ngopt.graph.core import NeuralGraph

# Steps of unit size in which `weight_decay` of the optimizer is given: that of AdamW's default.
NOMINAL_STEP = 1e-3


class Soap:
    """The base rule "soap" with its numbers; `bind` gives the rule on a graph."""

    name = "soap"
    Config = SoapConfig

    def __init__(self, config: SoapConfig | None = None):
        self.config = config or SoapConfig()

    def bind(
        self,
        graph: NeuralGraph,
        modulation: Modulation | None = None,
        total_steps: int | None = None,
    ) -> SoapRule:
        """The rule for the parameters of a graph.

        modulation: multiplies directions; None is the identity. total_steps: the horizon, where it
        is known.
        """
        return SoapRule(self.config, graph, modulation, total_steps)


class SoapRule:
    """An `UpdateRule`: p <- p - s (lr * u + lr * decay * p),
    with the direction u and the schedule s.

    A record is `step`, the number of gradients so far; `skipped`, how many of them were not finite;
    `scale` and `size` (see `Measured`); what `init_direction` describes; and, without a horizon,
    the `average` of the weights.
    """

    def __init__(
        self,
        config: SoapConfig,
        graph: NeuralGraph,
        modulation: Modulation | None,
        total_steps: int | None,
    ):
        self.config, self.total_steps = config, total_steps
        self.graph, self.modulation = graph, modulation
        self._planner = Planner(config, graph)
        self.layouts = self._planner.layouts

    def init(self, params: Sequence[Tensor]) -> list[Record]:
        rows = zip(params, self.layouts, strict=True)
        return [self._first_record(p, layouts) for p, layouts in rows]

    def update(
        self,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool = False,
    ) -> Iterator[Change]:
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if not present:
            return
        plan = self._planner.plan(present, state, in_place)
        step = self._begin(plan, grads, state, params, hyper, in_place)
        factors = self._modulate(state, step.now)
        for (some, batch), numbers in zip(
            plan.batches, step.numbers, strict=True
        ):
            yield from self._updated(step, some, batch, numbers, factors)

    def may_be_traced(
        self, grads: Sequence[Tensor | None], state: Sequence[Record]
    ) -> bool:
        """After the first steps, unless another state was loaded since the last."""
        present = [i for i, grad in enumerate(grads) if grad is not None]
        plan = self._planner.latest
        if (
            plan is None
            or not plan.is_settled
            or not all(state[i] for i in present)
        ):
            return False
        is_same = plan.made_for == made_for(present, state)
        return is_same and plan.counts.are_open(
            [state[i] for i in plan.positions]
        )

    def _first_record(
        self, p: Tensor, layouts: Sequence[MatrixLayout]
    ) -> Record:
        like = {"dtype": torch.float32, "device": p.device}
        zero = torch.zeros((), **like)
        record = {
            "step": torch.zeros((), dtype=torch.float32, device="cpu"),
            "skipped": zero,
            "scale": zero.clone(),
            "size": zero.clone(),
            **init_direction(p, layouts, state_dtype(p)),
        }
        if self.total_steps is None:
            record[AVERAGE] = p.detach().to(state_dtype(p), copy=True)
        if self.modulation is not None:
            record["signals"] = torch.zeros(
                count_rows(layouts), len(SIGNALS), **like
            )
        return record

    def _schedule(self, step: Any, now: Any, scheduled: bool) -> Any:
        """What the step size is at a parameter's own step, `now` steps into the training."""
        config = self.config
        if scheduled:
            return config.step_size
        if self.total_steps is not None:
            factor = with_horizon(step, now, self.total_steps, config.warmup)
            return config.step_size * factor
        factor = without_horizon(
            step, now, config.open_warmup, config.open_constant
        )
        return config.open_step_size * factor

    def _begin(
        self,
        plan: Plan,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
        in_place: bool,
    ) -> Step:
        """The numbers of this step, found for all parameters at once."""
        positions = plan.positions
        old: list[Record] = [state[i] for i in positions]
        new: list[Record] = old if in_place else [{} for _ in old]
        given = [grads[i] for i in positions]
        found = [grad for grad in given if grad is not None]
        rms = root_mean_squares([*found, *(params[i] for i in plan.matrices)])
        rms, weights = rms[: len(found)], rms[len(found) :]

        counts = plan.counts.open(old, in_place)
        sizes = plan.sizes.open(old, in_place)
        absent = [state[i]["step"] for i in plan.absent if state[i]]
        is_compiling = torch.compiler.is_compiling()
        is_traced = is_compiling and self.may_be_traced(grads, state)
        kind = TracedClock if is_traced else HostClock
        clock = kind(counts, absent, self.total_steps)
        at_step = clock.at(partial(self._at, scheduled=hyper.scheduled), rms)
        relative = relative_sizes(weights, plan.usual)
        decays = self._decayed(plan, hyper.weight_decay)
        rates = [hyper.lr[i] for i in positions]
        settings = [column(x, rms) for x in (plan.gains, rates, decays)]
        known = *columns(sizes, rms), *at_step, *settings
        numbers = of_all(self._numbers, rms, relative, *known)
        kept = numbers[: len(SIZE_KEYS)]
        active, *numbers = numbers[len(SIZE_KEYS) :]
        if self.total_steps is not None:  # there is no average
            numbers.pop()
        has_recall = not clock.is_settled and is_recalled(
            numbers[0], clock.steps
        )
        rows = [
            shared(numbers, some, old[some.start]["exp_avg"], has_recall)
            for some, _ in plan.batches
        ]

        plan.is_settled = clock.is_settled
        plan.counts.close(
            new, as_tensor([clock.steps_after()], counts), in_place
        )
        plan.sizes.close(new, as_tensor(kept, sizes), in_place)
        return Step(
            positions=positions,
            grads=found,
            params=[params[i] for i in positions],
            turns=clock.turns(old, plan.phases, self.config.renew_every),
            records=new,
            active=active,
            numbers=rows,
            now=clock.now,
            in_place=in_place,
        )

    def _at(self, step: Any, now: Any, scheduled: bool) -> Sequence[Any]:
        """The numbers of a parameter that are given by its step."""
        height = self._schedule(step, now, scheduled)
        newest = average_weight(step, self.config.average_power)
        return *sizes_at(step), *corrections(step, self.config), height, newest

    def _numbers(
        self,
        rms: Any,
        relative: Any,
        scale: Any,
        size: Any,
        skipped: Any,
        early: Any,
        kept: Any,
        shrink: Any,
        damping: Any,
        height: Any,
        newest: Any,
        gain: Any,
        lr: Any,
        decay: Any,
    ) -> Sequence[Any]:
        """Of one parameter, or of all (n,): new `SIZE_KEYS`,
        whether the step is made, `NUMBERS`."""
        config = self.config
        measured = measure(rms, scale, size, early, kept, config.clip)
        active = measured.active
        rate = lr * height * active
        step_size = (
            -rate * gain * weight_sizes(relative, config.weight_exponent)
        )
        sizes = measured.scale, measured.size, skipped + (1 - active)
        direction = step_numbers(measured, shrink, damping, config)
        return (
            *sizes,
            active,
            *direction,
            step_size,
            rate * decay,
            newest * active,
        )

    def _decayed(
        self, plan: Plan, weight_decay: Sequence[float]
    ) -> Sequence[float]:
        """Weight decays of the plan's parameters in units of the step size."""
        if not any(weight_decay):
            return plan.decays
        unit = NOMINAL_STEP / self.config.step_size
        rows = zip(plan.decays, plan.positions, strict=True)
        return [own + unit * weight_decay[i] for own, i in rows]

    def _modulate(
        self, state: Sequence[Record], now: int | Tensor
    ) -> Sequence[Tensor] | None:
        """The factors of all rows, from what these said after the step before."""
        if self.modulation is None:
            return None
        nothing = torch.zeros(0, len(SIGNALS), dtype=torch.float32)
        signals = [record.get("signals", nothing) for record in state]
        progress = None if self.total_steps is None else now / self.total_steps
        return self.modulation(signals, self.graph, progress)

    def _updated(
        self,
        step: Step,
        some: slice,
        batch: Batch,
        numbers: Shared,
        factors: Sequence[Tensor] | None,
    ) -> Iterable[Change]:
        """The changes of a batch."""
        positions = step.positions[some]
        turns = step.turns[some]
        records = step.records[some]
        value = batch.directions(
            step.grads[some],
            turns,
            records,
            numbers,
            self.config,
            step.in_place,
        )
        if factors is not None:
            rows = zip(positions, batch.flat.split(value), strict=True)
            value = batch.flat.join(
                [modulated(v, factors[i], self.layouts[i]) for i, v in rows]
            )
        params = step.params[some]
        # written over where nobody asks for directions: all of a long table is much memory
        own = value if self.modulation is None else value.clone()
        delta = batch.delta(own, params, turns, records, numbers, step.in_place)
        deltas = batch.split(delta)
        if self.modulation is not None:
            self._put_signals(step, some, batch.flat.split(value), deltas)
        return map(Change, positions, deltas, records)

    def _put_signals(
        self,
        step: Step,
        some: slice,
        values: Sequence[Tensor],
        deltas: Sequence[Tensor],
    ) -> None:
        """What the rows of each parameter say after the step."""
        members = range(*some.indices(len(step.positions)))
        for j, value, delta in zip(members, values, deltas, strict=True):
            layouts = self.layouts[step.positions[j]]
            before = step.turns[j].record["signals"]
            rows = row_signals(
                layouts, step.grads[j], value, delta, step.params[j]
            ).float()
            is_active = on(torch.as_tensor(step.active[j] > 0), rows.device)
            step.records[j]["signals"] = torch.where(is_active, rows, before)
