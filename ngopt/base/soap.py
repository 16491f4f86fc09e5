"""The base rule of the default: SOAP (Vyas et al. 2024) with one setting for every network.

For a matrix G of gradients, L and R are running means of G G^T and G^T G with eigenvectors Q_L and
Q_R. Adam's second moment v is that of Q_L^T G Q_R, and the direction is

    u = Q_L [Q_L^T n Q_R / sqrt(v)] Q_R^T,   n: Nesterov's momentum.

What differs from SOAP: a basis is renewed after the update, so that it never contains the gradient
that it is applied to; factors belong to neurons, so that heads, gates and experts have their own;
gradients are divided by the size of the first, so that the scale of the loss changes nothing; one
far out of its running size is cut, one that is not finite left out; what never had a gradient does
not move; the step size follows fans, initial weights, role and horizon.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.base.arrays import Array, array, array_like, columns, namespace
from ngopt.base.batch import Batch, Task, has_modes
from ngopt.base.direction import DirectionConfig, init_direction, recalled, step_numbers
from ngopt.base.layout import MatrixLayout, layouts_of
from ngopt.base.measure import EARLY, measure, root_mean_squares
from ngopt.base.modes import factor_shape
from ngopt.base.modulation import SIGNALS, Modulation, count_rows, modulated, row_signals
from ngopt.base.schedule import average_weight, with_horizon, without_horizon
from ngopt.functional import AVERAGE, Hyper, Record, state_dtype
from ngopt.graph.core import NeuralGraph
from ngopt.roles import ParameterRole, roles_of

# Steps of unit size in which `weight_decay` of the optimizer is given: that of AdamW's default.
NOMINAL_STEP = 1e-3
# Parameters of so many numbers are updated together, up to as many as stay in a cache.
SMALL, BATCH = 1 << 16, 1 << 18
# Sizes of weights, in usual ones, that the step size follows: layers that begin at zero must leave it.
SIZES = (0.25, 10.0)


@dataclass(frozen=True)
class SoapConfig(DirectionConfig):
    """All numbers of the rule, beside those of the direction.

    step_size: of a matrix with 64 inputs and weights of PyTorch's initial size, at the schedule's
        height; the root mean square of an update is about a quarter of it.
    fan_exponent, fan_cap: the step size goes with fan_in ** -fan_exponent, up to `fan_cap` times.
    weight_exponent: and with the size of the weights, in that of PyTorch's initial ones, to this
        power: at 1, steps are shares of the weights, however these have grown.
    embedding, output, norm, bias, other: factors of parameters of these roles.
    weight_decay: of matrices, decoupled, in units of the step size.
    warmup: share of the horizon. clip: see `measure`. renew_every: steps between renewals of a
        basis, fewer in the beginning. longest, budget: see `layouts_of`.
    open_step_size, open_warmup, open_constant, average_power: without a horizon; see
        `without_horizon` and `average_weight`.
    """

    step_size: float = 0.009
    fan_exponent: float = 0.5
    fan_cap: float = 1.0
    weight_exponent: float = 1.0
    embedding: float = 2.5
    output: float = 1.0
    norm: float = 1.0
    bias: float = 1.0
    other: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.08
    clip: float = 10.0
    renew_every: int = 10
    longest: int = 1024
    budget: float = 8.0
    open_step_size: float = 0.01
    open_warmup: int = 30
    open_constant: int = 50
    average_power: float = 10.0


def _fan_in(role: ParameterRole) -> int | None:
    """Inputs times kernel positions of one neuron; None for what is no matrix, and for tables."""
    if not role.blocks or role.role == "embedding":
        return None
    return max(prod(block.view.shape[2:]) for block in role.blocks)


def _gain(role: ParameterRole, config: SoapConfig) -> float:
    """The factor of the step size that role and fan give."""
    factor = 1.0 if role.role == "matrix" else getattr(config, role.role)
    fan_in = _fan_in(role)
    if not fan_in:
        return factor
    return factor * min((fan_in / 64) ** -config.fan_exponent, config.fan_cap)


def _usual_size(role: ParameterRole) -> float | None:
    """Root mean square of PyTorch's initial weights, uniform in +- 1 / sqrt(fan_in)."""
    fan_in = _fan_in(role)
    return (3 * fan_in) ** -0.5 if fan_in else None


class _Step(NamedTuple):
    """What one step knows of the parameters that have a gradient, in their order.

    present: their positions. steps: gradients before this one. active: 0 where the step is left out.
    numbers: of `step_numbers`, (6, n). sizes: of the step, with all its factors; of the share of the
        weights that decays; and of the share of their average that stays, (3, n).
    decays: whether any weights do. kept: scalars of the new records.
    """

    present: Sequence[int]
    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    records: Sequence[Record]
    steps: Sequence[int]
    active: Array
    numbers: Tensor
    sizes: Tensor
    decays: bool
    kept: Sequence[Record]


class _Members(NamedTuple):
    """A batch, and the places of its parameters among those of a step."""

    places: Sequence[int]
    index: Tensor
    batch: Batch

    def columns(self, table: Tensor, like: Tensor) -> Tensor:
        """Those of the members of a table (k, n), in the dtype and on the device of their state."""
        return table.index_select(1, _on(self.index, table.device)).to(like)


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
        self._gains = [_gain(role, config) for role in self.roles]
        self._usual = [_usual_size(role) for role in self.roles]
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
    ) -> _Step:
        """The numbers of this step, found for all parameters at once."""
        config, own = self.config, [state[i] for i in present]
        found = [grad for grad in grads if grad is not None]
        matrices = [j for j, i in enumerate(present) if self._usual[i] is not None]
        rms = root_mean_squares([*found, *(params[present[j]] for j in matrices)])
        rms, weights = rms[: len(found)], rms[len(found) :]

        steps = [int(record["step"]) for record in own]
        scale, size, skipped = _scalars(own, rms)
        measured = measure(rms, scale, size, steps, config.clip)
        active = measured.active
        heights = [self._schedule(step, now, hyper.scheduled) for step in steps]
        lr = [hyper.lr[i] for i in present]
        rates = _vector(lr, active) * array_like(heights, active) * active
        gains = array_like([self._gains[i] for i in present], active)
        gains = gains * self._weight_sizes(present, matrices, weights, active)
        decays = [self._decay(i, hyper.weight_decay[i]) for i in present]
        newest = array_like([average_weight(step, config.average_power) for step in steps], active)
        sizes = rates * gains, rates * array_like(decays, active), 1 - newest * active
        kept = measured.scale, measured.size, skipped + (1 - active)
        return _Step(
            present=present,
            grads=found,
            params=[params[i] for i in present],
            records=self._recalled(present, own, steps, measured.recall),
            steps=steps,
            active=active,
            numbers=step_numbers(measured, steps, config),
            sizes=columns(sizes),
            decays=any(decays),
            kept=_kept(own, columns(kept).float()),
        )

    def _weight_sizes(
        self,
        present: Sequence[int],
        matrices: Sequence[int],
        weights: Array,
        like: Array,
    ) -> Array:
        """Factors of the step size that the size of the weights gives, (n,).

        matrices: of which of the present the root mean squares of the weights are.
        """
        if not matrices:
            return namespace(like).ones_like(like)
        usual = array_like([self._usual[present[j]] or 1.0 for j in matrices], like)
        sizes = namespace(like).clip(weights / usual, *SIZES) ** self.config.weight_exponent
        # at the end a 1, for those that are no matrices
        places = {j: number for number, j in enumerate(matrices)}
        order = [places.get(j, len(matrices)) for j in range(len(present))]
        return namespace(like).concatenate((sizes, array_like([1.0], like)))[order]

    def _recalled(
        self,
        present: Sequence[int],
        records: Sequence[Record],
        steps: Sequence[int],
        factors: Array,
    ) -> list[Record]:
        """Records whose first gradients are in proportion to the next."""
        found = list(records)
        for j, (i, step) in enumerate(zip(present, steps, strict=True)):
            if 0 < step <= EARLY:
                found[j] = recalled(found[j], self.layouts[i], torch.as_tensor(factors[j]))
        return found

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

    def _batches(self, step: _Step) -> list[_Members]:
        """What is updated together: small parameters of one kind."""
        kinds = tuple((record["exp_avg"].dtype, record["exp_avg"].device) for record in step.records)
        wanted = tuple(step.present), kinds
        if self._plan is None or self._plan[0] != wanted:
            self._plan = wanted, self._planned(step, kinds)
        return self._plan[1]

    def _planned(self, step: _Step, kinds: Sequence[tuple]) -> list[_Members]:
        shapes = [record["exp_avg"].shape for record in step.records]
        layouts = [self.layouts[i] for i in step.present]
        found: list[list[int]] = []
        latest: dict[tuple, list[int]] = {}
        room: dict[tuple, int] = {}
        # those with preconditioners first, as a batch has them
        for j in sorted(range(len(shapes)), key=lambda j: not has_modes(layouts[j])):
            size, kind = shapes[j].numel(), kinds[j]
            if size > SMALL:
                found.append([j])
                continue
            if size > room.get(kind, 0):
                latest[kind], room[kind] = [], BATCH
                found.append(latest[kind])
            latest[kind].append(j)
            room[kind] -= size
        planned = []
        for members in found:
            own = [shapes[j] for j in members], [layouts[j] for j in members]
            batch = Batch(*own, kinds[members[0]][1])
            planned.append(_Members(members, torch.tensor(members), batch))
        return planned

    def _updated(
        self,
        step: _Step,
        members: _Members,
        factors: Sequence[Tensor] | None,
    ) -> list[tuple[int, Tensor, Record]]:
        """Positions, deltas and new records of a batch."""
        numbers, batch = [step.present[j] for j in members.places], members.batch
        tasks = [self._task(step, j) for j in members.places]
        like = tasks[0].record["exp_avg"]
        ahead = (1 - self.config.beta1) * self.config.nesterov
        value, records = batch.directions(tasks, members.columns(step.numbers, like), ahead)
        if factors is not None:
            rows = zip(numbers, batch.flat.split(value), strict=True)
            value = batch.flat.join([modulated(v, factors[i], self.layouts[i]) for i, v in rows])
        delta = self._delta(step, members, value, records)
        deltas = batch.flat.split(delta)
        for j, record in zip(members.places, records, strict=True):
            record.update(step.kept[j])
        if self.modulation is not None:
            rows = zip(members.places, records, batch.flat.split(value), deltas, strict=True)
            for j, record, *found in rows:
                record["signals"] = self._signals(step, j, *found)
        return list(zip(numbers, deltas, records, strict=True))

    def _task(self, step: _Step, j: int) -> Task:
        i, count = step.present[j], step.steps[j]
        return Task(step.grads[j], step.records[j], count, self._is_due(i, count))

    def _delta(
        self,
        step: _Step,
        members: _Members,
        value: Tensor,
        records: Sequence[Record],
    ) -> Tensor:
        """What is added to the parameters of a batch, flat; puts averages into the new records."""
        flat = members.batch.flat
        size, decay, kept = flat.spread(members.columns(step.sizes, value)).unbind()
        delta = value * -size
        has_average = self.total_steps is None
        if not (step.decays or has_average):
            return delta
        params = flat.join([step.params[j] for j in members.places]).to(delta.dtype)
        if step.decays:
            delta.addcmul_(params, decay, value=-1)  # in place: all of a long table is much memory
        if has_average:
            old = flat.join([step.records[j][AVERAGE] for j in members.places])
            averages = flat.split((params + delta).lerp_(old, kept))
            for record, average in zip(records, averages, strict=True):
                record[AVERAGE] = average
        return delta

    def _signals(self, step: _Step, j: int, value: Tensor, delta: Tensor) -> Tensor:
        """What the rows of a parameter say after the step."""
        layouts, grad, param = self.layouts[step.present[j]], step.grads[j], step.params[j]
        rows = row_signals(layouts, grad, value, delta, param).float()
        is_active = _on(torch.as_tensor(step.active[j]) > 0, rows.device)
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


def _vector(values: Sequence[float | Tensor], like: Array) -> Array:
    """Numbers, some of them perhaps tensors, as an array."""
    plain = [value for value in values if not isinstance(value, Tensor)]
    if len(plain) == len(values):
        return array_like(plain, like)
    found = torch.stack([torch.as_tensor(value) for value in values])
    return found.to(like) if isinstance(like, Tensor) else array(found)


def _scalars(records: Sequence[Record], like: Array) -> Array:
    """`scale`, `size` and `skipped` of all records, (3, n)."""
    device = like.device if isinstance(like, Tensor) else torch.device("cpu")
    keys = "scale", "size", "skipped"
    found = torch.stack([_on(record[key], device) for key in keys for record in records])
    return array(found.view(len(keys), -1).to(columns([like]).dtype))


def _kept(records: Sequence[Record], table: Tensor) -> list[Record]:
    """What new records hold beside the state of the direction: scalars, where the old ones are.

    table: `scale`, `size` and `skipped`, (3, n).
    """
    keys = "step", "scale", "size", "skipped"
    steps = torch.stack([record["step"] for record in records]) + 1
    rows = zip(steps.unbind(), *(row.unbind() for row in table.unbind()), strict=True)
    return [
        {key: _on(value, record[key].device) for key, value in zip(keys, row, strict=True)}
        for record, row in zip(records, rows, strict=True)
    ]


def _on(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; cheaper than `to` where it is there already."""
    return x if x.device == device else x.to(device)
