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
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.direction import DirectionConfig, direction, init_direction, recalled
from ngopt.base.layout import MatrixLayout, layouts_of
from ngopt.base.measure import EARLY, Measured, measure, root_mean_squares
from ngopt.base.modulation import SIGNALS, Modulation, count_rows, modulated, row_signals
from ngopt.base.schedule import average_weight, with_horizon, without_horizon
from ngopt.base.vectors import vector_directions
from ngopt.functional import AVERAGE, Hyper, Record, state_dtype
from ngopt.graph.core import NeuralGraph
from ngopt.roles import ParameterRole, roles_of

# Steps of unit size in which `weight_decay` of the optimizer is given: that of AdamW's default.
NOMINAL_STEP = 1e-3
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


class _Item(NamedTuple):
    """A parameter in one step: the last four are () each.

    step_size: with all its factors, 0 where the step is left out. decay: share of the weights that goes.
    """

    number: int
    grad: Tensor
    param: Tensor
    record: Record
    measured: Measured
    decays: bool
    step_size: Tensor
    decay: Tensor
    step: Tensor
    skipped: Tensor


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
        self._has_modes = [any(layout.modes for layout in some) for some in self.layouts]
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
        items = self._items(present, now, grads, state, params, hyper)
        factors = self._modulate(state, now)
        for item, value, new in self._directions(items):
            if factors is not None:
                value = modulated(value, factors[item.number], self.layouts[item.number])
            delta = self._delta(item, value)
            if "signals" in item.record:
                rows = row_signals(self.layouts[item.number], item.grad, value, delta, item.param)
                is_active = on(item.measured.active, rows.device) > 0
                new["signals"] = torch.where(is_active, rows.float(), item.record["signals"])
            del value  # of a long table it is much memory
            yield item.number, delta, new | self._numbers(item, delta)

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

    def _weight_sizes(self, present: Sequence[int], params: Sequence[Tensor]) -> Tensor:
        """Factors of the step size that the size of the weights gives, (present,)."""
        usual = {i: size for i in present if (size := self._usual[i]) is not None}
        device = params[present[0]].device
        found = dict.fromkeys(present, torch.ones((), device=device))
        rms = root_mean_squares([params[i] for i in usual]) if usual else ()
        for i, size in zip(usual, rms, strict=True):
            found[i] = on(size, device).float() / usual[i]
        sizes = torch.stack(list(found.values())).clamp(*SIZES)
        return sizes**self.config.weight_exponent

    def _schedule(self, step: int, now: int, scheduled: bool) -> float:
        """What the step size is at a parameter's own step, `now` steps into the training."""
        config = self.config
        if scheduled:
            return config.step_size
        if self.total_steps is not None:
            return config.step_size * with_horizon(step, now, self.total_steps, config.warmup)
        factor = without_horizon(step, now, config.open_warmup, config.open_constant)
        return config.open_step_size * factor

    def _items(
        self,
        present: Sequence[int],
        now: int,
        grads: Sequence[Tensor | None],
        state: Sequence[Record],
        params: Sequence[Tensor],
        hyper: Hyper,
    ) -> list[_Item]:
        """The numbers of this step, found for all parameters at once."""
        found = [grad for grad in grads if grad is not None]
        measured = measure(found, [state[i] for i in present], self.config.clip)
        device = found[0].device
        active = torch.stack([m.active for m in measured])
        rates = [hyper.lr[i] * self._schedule(int(state[i]["step"]), now, hyper.scheduled) for i in present]
        gains = _vector([self._gains[i] for i in present], device)
        gains = gains * self._weight_sizes(present, params)
        step_sizes = _vector(rates, device) * active
        decays = [self._decay(i, hyper.weight_decay[i]) for i in present]
        skipped = torch.stack([on(state[i]["skipped"], device) for i in present]) + (1 - active)
        steps = torch.stack([state[i]["step"] for i in present]) + 1
        records = [self._recalled(i, state[i], m) for i, m in zip(present, measured, strict=True)]
        columns = (step_sizes * gains, step_sizes * _vector(decays, device), steps, skipped)
        rows = zip(*(column.unbind() for column in columns), strict=True)
        return [
            _Item(i, grad, params[i], record, m, decay > 0, *row)
            for i, grad, record, m, decay, row in zip(present, found, records, measured, decays, rows, strict=True)
        ]

    def _recalled(self, i: int, record: Record, measured: Measured) -> Record:
        """A record whose first gradients are in proportion to the next."""
        if not 0 < int(record["step"]) <= EARLY:
            return record
        return recalled(record, self.layouts[i], measured.recall)

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

    def _directions(self, items: Sequence[_Item]) -> Iterator[tuple[_Item, Tensor, Record]]:
        """Directions and new states: without preconditioners of many at once, then one by one."""
        alike: dict[tuple, list[_Item]] = {}
        for item in items:
            if not self._has_modes[item.number]:
                like = item.record["exp_avg"]
                alike.setdefault((like.dtype, like.device), []).append(item)
        for some in alike.values():
            grads, records = [x.grad for x in some], [x.record for x in some]
            found = vector_directions(grads, records, [x.measured for x in some], self.config)
            yield from ((item, *pair) for item, pair in zip(some, found, strict=True))
        for item in items:
            if self._has_modes[item.number]:
                yield item, *self._direction(item)

    def _direction(self, item: _Item) -> tuple[Tensor, Record]:
        i, record = item.number, item.record
        renew = self._is_due(i, int(record["step"]))
        return direction(item.grad, record, self.layouts[i], item.measured, self.config, renew)

    def _delta(self, item: _Item, value: Tensor) -> Tensor:
        """What is added to the parameter, for a direction."""
        device, dtype = value.device, value.dtype
        delta = value * -on(item.step_size, device).to(dtype)
        if item.decays:
            decay = on(item.decay, device).to(dtype)
            # in place, since all of a long table is much memory
            delta.addcmul_(item.param.to(dtype), decay, value=-1)
        return delta

    def _numbers(self, item: _Item, delta: Tensor) -> Record:
        """What a new record holds beside the state of the direction and signals."""
        device = delta.device
        new = {
            "step": item.step,
            "skipped": on(item.skipped, device),
            "scale": on(item.measured.scale, device),
            "size": on(item.measured.size, device),
        }
        if AVERAGE in item.record:
            weight = average_weight(int(item.record["step"]), self.config.average_power)
            weight = weight * on(item.measured.active, device).to(delta.dtype)
            # from the newest to the average, in place
            new[AVERAGE] = (item.param + delta).lerp_(item.record[AVERAGE], 1 - weight)
        return new

    def _is_due(self, i: int, step: int) -> bool:
        """Whether the bases of a parameter are renewed: in turn, so that no step does it for all."""
        every = min(self.config.renew_every, 1 + step // 8)
        return (step + self._phases[i]) % every == 0


def _renewal_cost(layouts: Sequence[MatrixLayout]) -> float:
    """Of all bases of a parameter, in multiplications, up to a factor."""
    shapes = [mode.factor_shape(layout.shape[0]) for layout in layouts for mode in layout.modes]
    return float(sum(prod(shape) * shape[-1] for shape in shapes))


def _in_turn(costs: Sequence[float], steps: int) -> list[int]:
    """In which of some steps each is done, so that all steps cost about the same."""
    totals, found = [0.0] * steps, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        found[i] = totals.index(min(totals))
        totals[found[i]] += costs[i]
    return found


def on(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; cheaper than `to` where it is there already."""
    return x if x.device == device else x.to(device)


def _vector(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Numbers, some of them perhaps tensors, as one tensor."""
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor(values, device=device)
    return torch.stack([torch.as_tensor(value, device=device) for value in values])
