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

import warnings
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.base.arrays import array_like, on, stacked
from ngopt.base.batch import Batch, Task, batches
from ngopt.base.config import SoapConfig
from ngopt.base.direction import init_direction, recalled, step_numbers
from ngopt.base.layout import MatrixLayout, layouts_of
from ngopt.base.measure import EARLY, measure, root_mean_squares
from ngopt.base.modes import factor_shape
from ngopt.base.modulation import SIGNALS, Modulation, count_rows, modulated, row_signals
from ngopt.base.scale import gain, usual_size, weight_sizes
from ngopt.base.schedule import average_weight, with_horizon, without_horizon
from ngopt.base.step import Shared, Step, kept_scalars, of_each, scalars, shared, vector
from ngopt.functional import AVERAGE, Hyper, Record, state_dtype
from ngopt.graph.core import NeuralGraph
from ngopt.roles import roles_of

# Steps of unit size in which `weight_decay` of the optimizer is given: that of AdamW's default.
NOMINAL_STEP = 1e-3


class _Members(NamedTuple):
    """A batch, and the places of its parameters among those of a step."""

    places: Sequence[int]
    index: Tensor
    batch: Batch


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
    """An `UpdateRule`: p <- p - s (lr * u + lr * decay * p), with the direction u and the schedule s.

    A record is `step`, the number of gradients so far; `skipped`, how many of them were not finite;
    `scale` and `size` (see `Measured`); what `init_direction` describes; and, without a horizon, the
    `average` of the weights.
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
        self.roles = roles_of(graph)
        self.layouts = [
            layouts_of(role, spec.shape, config.longest, config.budget)
            for role, spec in zip(self.roles, graph.parameters, strict=True)
        ]
        self._gains = [gain(role, config) for role in self.roles]
        self._usual = [usual_size(role) for role in self.roles]
        self._plan: tuple[Any, list[_Members]] | None = None
        self._phases = _in_turn([_renewal_cost(some) for some in self.layouts], config.renew_every)

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
    ) -> Iterator[tuple[int, Tensor, Record]]:
        present = [i for i, grad in enumerate(grads) if grad is not None]
        if not present:
            return
        now = max(int(record["step"]) for record in state if record)
        if now == self.total_steps:
            warnings.warn(
                f"NGOptimizer: step {now + 1} of total_steps={now}: the step size stays near zero from here on",
                stacklevel=3,
            )
        step = self._begin(present, now, grads, state, params, hyper)
        factors = self._modulate(state, now)
        for batch in self._batches(step):
            yield from self._updated(step, batch, factors)

    def _first_record(self, p: Tensor, layouts: Sequence[MatrixLayout]) -> Record:
        zero = torch.zeros((), device=p.device)
        record = {
            "step": torch.zeros(()),
            "skipped": zero,
            "scale": zero.clone(),
            "size": zero.clone(),
            **init_direction(p, layouts, state_dtype(p)),
        }
        if self.total_steps is None:
            record[AVERAGE] = p.detach().to(state_dtype(p), copy=True)
        if self.modulation is not None:
            record["signals"] = torch.zeros(count_rows(layouts), len(SIGNALS), device=p.device)
        return record

    def _schedule(self, step: int, now: int, scheduled: bool) -> float:
        """What the step size is at a parameter's own step, `now` steps into the training."""
        config = self.config
        if scheduled:
            return config.step_size
        if self.total_steps is not None:
            return config.step_size * with_horizon(step, now, self.total_steps, config.warmup)
        factor = without_horizon(step, now, config.open_warmup, config.open_constant)
        return config.open_step_size * factor

    def _begin(
        self,
        present: Sequence[int],
        now: int,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> Step:
        """The numbers of this step, found for all parameters at once."""
        config, own = self.config, [state[i] for i in present]
        found = [grad for grad in grads if grad is not None]
        matrices = [j for j, i in enumerate(present) if self._usual[i] is not None]
        rms = root_mean_squares([*found, *(params[present[j]] for j in matrices)])
        rms, weights = rms[: len(found)], rms[len(found) :]

        steps = [int(record["step"]) for record in own]
        scale, size, skipped = scalars(own, rms)
        measured = measure(rms, scale, size, steps, config.clip)
        active = measured.active
        heights = of_each(steps, lambda step: self._schedule(step, now, hyper.scheduled))
        lr = [hyper.lr[i] for i in present]
        rates = vector(lr, active) * array_like(heights, active) * active
        gains = array_like([self._gains[i] for i in present], active)
        usual = [self._usual[i] for i in present]
        gains = gains * weight_sizes(weights, usual, config.weight_exponent, active)
        decays = [self._decay(i, hyper.weight_decay[i]) for i in present]
        newest = of_each(steps, lambda step: average_weight(step, config.average_power))
        stays = 1 - array_like(newest, active) * active
        sizes = rates * gains, rates * array_like(decays, active), stays
        numbers = *step_numbers(measured, steps, config), *sizes
        counts = array_like([step + 1 for step in steps], active)
        kept = counts, measured.scale, measured.size, skipped + (1 - active)
        return Step(
            present=present,
            grads=found,
            params=[params[i] for i in present],
            records=own,
            steps=steps,
            active=active,
            recall=measured.recall,
            numbers=stacked(numbers),
            decays=any(decays),
            kept=kept_scalars(own, kept),
        )

    def _decay(self, i: int, weight_decay: float) -> float:
        """Weight decay of a parameter in units of the step size."""
        own = self.config.weight_decay if self.roles[i].blocks else 0.0
        return own + weight_decay * NOMINAL_STEP / self.config.step_size

    def _modulate(self, state: Sequence[Record], now: int) -> Sequence[Tensor] | None:
        """The factors of all rows, from what these said after the step before."""
        if self.modulation is None:
            return None
        nothing = torch.zeros(0, len(SIGNALS))
        signals = [record.get("signals", nothing) for record in state]
        progress = None if self.total_steps is None else now / self.total_steps
        return self.modulation(signals, self.graph, progress)

    def _batches(self, step: Step) -> list[_Members]:
        """What is updated together: small parameters of one kind."""
        likes = [record["exp_avg"] for record in step.records]
        kinds = [(like.dtype, like.device) for like in likes]
        wanted = tuple(step.present), kinds
        if self._plan is None or self._plan[0] != wanted:
            shapes = [like.shape for like in likes]
            layouts = [self.layouts[i] for i in step.present]
            found = batches(shapes, layouts, kinds)
            members = [_Members(some, torch.tensor(some), batch) for some, batch in found]
            self._plan = wanted, members
        return self._plan[1]

    def _updated(
        self,
        step: Step,
        members: _Members,
        factors: Sequence[Tensor] | None,
    ) -> list[tuple[int, Tensor, Record]]:
        """Positions, deltas and new records of a batch."""
        positions, batch = [step.present[j] for j in members.places], members.batch
        tasks = [self._task(step, j) for j in members.places]
        like = tasks[0].record["exp_avg"]
        ahead = (1 - self.config.beta1) * self.config.nesterov
        numbers = shared(step.numbers, members.index, like)
        value, records = batch.directions(tasks, numbers, ahead)
        if factors is not None:
            rows = zip(positions, batch.flat.split(value), strict=True)
            value = batch.flat.join([modulated(v, factors[i], self.layouts[i]) for i, v in rows])
        delta = self._delta(step, members, numbers, value, records)
        deltas = batch.flat.split(delta)
        for j, record in zip(members.places, records, strict=True):
            record.update(step.kept[j])
        if self.modulation is not None:
            rows = zip(members.places, records, batch.flat.split(value), deltas, strict=True)
            for j, record, *found in rows:
                record["signals"] = self._signals(step, j, *found)
        return list(zip(positions, deltas, records, strict=True))

    def _task(self, step: Step, j: int) -> Task:
        i, count, record, factor = step.present[j], step.steps[j], step.records[j], step.recall[j]
        # which a tensor may be is not asked
        is_in_proportion = not isinstance(factor, Tensor) and factor == 1
        if 0 < count <= EARLY and not is_in_proportion:
            record = recalled(record, self.layouts[i], torch.as_tensor(factor))
        return Task(step.grads[j], record, count, self._is_due(i, count))

    def _delta(
        self,
        step: Step,
        members: _Members,
        numbers: Shared,
        value: Tensor,
        records: Sequence[Record],
    ) -> Tensor:
        """What is added to the parameters of a batch, flat; puts averages into the new records."""
        flat = members.batch.flat
        size = flat.spread(numbers.size)
        # in place where nobody asks for directions: all of a long table is much memory
        delta = value.mul_(-size) if self.modulation is None else value * -size
        has_average = self.total_steps is None
        if not (step.decays or has_average):
            return delta
        params = flat.join([step.params[j] for j in members.places]).to(delta.dtype)
        if step.decays:
            delta.addcmul_(params, flat.spread(numbers.decay), value=-1)
        if has_average:
            old = flat.join([step.records[j][AVERAGE] for j in members.places])
            stays = flat.spread(numbers.stays)
            averages = flat.split((params + delta).lerp_(old, stays))
            for record, average in zip(records, averages, strict=True):
                record[AVERAGE] = average
        return delta

    def _signals(self, step: Step, j: int, value: Tensor, delta: Tensor) -> Tensor:
        """What the rows of a parameter say after the step."""
        layouts, grad, param = self.layouts[step.present[j]], step.grads[j], step.params[j]
        rows = row_signals(layouts, grad, value, delta, param).float()
        is_active = on(torch.as_tensor(step.active[j]) > 0, rows.device)
        return torch.where(is_active, rows, step.records[j]["signals"])

    def _is_due(self, i: int, step: int) -> bool:
        """Whether the bases of a parameter are renewed: in turn, so that no step does it for all."""
        every = min(self.config.renew_every, 1 + step // 8)
        return (step + self._phases[i]) % every == 0


def _renewal_cost(layouts: Sequence[MatrixLayout]) -> float:
    """Of all bases of a parameter, in multiplications, up to a factor."""
    shapes = [factor_shape(mode, layout.shape[0]) for layout in layouts for mode in layout.modes]
    return float(sum(prod(shape) * shape[-1] for shape in shapes))


def _in_turn(costs: Sequence[float], steps: int) -> list[int]:
    """In which of some steps each is done, so that all steps cost about the same."""
    totals, found = [0.0] * steps, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        found[i] = totals.index(min(totals))
        totals[found[i]] += costs[i]
    return found
