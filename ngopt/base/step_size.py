"""All that is known of a step beforehand: how large it is by role, fan and schedule.

Steps are arrays on the host or, during capture in a CUDA graph, tensors on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ngopt.base.config import SoapConfig
from ngopt.base.gradient_clipping import DECAY
from ngopt.devices import Array, precise_dtype, stacked
from ngopt.functional import Hyper
from ngopt.roles.from_graph import ParameterRole
from ngopt.schedule import average_weight, with_horizon, without_horizon

NOMINAL_STEP = 1e-3  # unit of the user's weight decay: the step size of AdamW's default
# What step sizes follow: see `ngopt.base.first_steps`.
LEAST = 1e-15  # damping: nothing is divided by 0
FOLLOWED = (0.0625, 10.0)
TINY = 1e-30


class ScheduledValues(NamedTuple):
    """What is known of every parameter before a step, (n,): numbers, arrays, tensors."""

    count: Array  # gradients so far, this one included
    before: Array  # correction of the running RMS of gradients, before this step
    after: Array  # and after it
    correction: Array  # of sums of squares, with that of momentum, squared
    damping: Array  # of the mean square beside them
    newest: Array  # weight of the new weights in their average
    usual: Array  # squared distance of steps in random directions, over their squares
    rate: Array  # step size by schedule, role and fan; times lr, with a minus
    decay: Array  # of weights by schedule; times lr, with a minus
    beta2: Array  # decay of second moments
    gain: Array  # `rate` without the schedule
    per_height: Array  # `decay` without it
    per_rms: Array  # 1 / RMS of PyTorch's initial weights


class ScheduleTable:
    """Makes `ScheduledValues` of the parameters of these roles."""

    def __init__(
        self,
        config: SoapConfig,
        roles: Sequence[ParameterRole],
        total_steps: int | None,
        device: torch.device,
    ):
        self.config, self.total_steps, self.device = config, total_steps, device
        self._decays = np.array([config.weight_decay * bool(r.blocks) for r in roles])
        # PyTorch's initial weights are uniform in +-fan ** -.5: RMS (3 fan) ** -.5
        self._per_rms = np.array([3 * (role.fan_in or 0) for role in roles]) ** 0.5
        self._gains = np.array([role_gain(role, config) for role in roles])
        tables = np.array([role.role == "embedding" for role in roles])
        self._beta2 = np.where(tables, config.beta2_table, config.beta2)
        self._table: Tensor | None = None
        short = config.short / (total_steps or config.short)
        self.lengthening = max(short, 1.0) ** config.short_exponent

    def known(self, ages: Sequence[float], now: float, hyper: Hyper) -> ScheduledValues:
        """Of a step, on the host: numbers where all parameters have the same, or
        arrays.

        ages: updates of each parameter, now: steps of the training, before this one.
        """
        lr = np.array([-1.0 if is_kept(x) else -float(x) for x in hyper.lr])
        is_open = self.total_steps is None and not hyper.scheduled
        c, oldest = self.config, max(ages)
        unit = NOMINAL_STEP / (c.open_step_size if is_open else c.step_size)
        pairs = zip(self._decays, hyper.weight_decay, strict=True)
        decay = np.array([own if x is None else unit * x for own, x in pairs])
        self._behind = now - oldest
        age = np.array(ages) if min(ages) < oldest else oldest
        beta2, gain, per_height = self._beta2, lr * self._gains, lr * decay
        found = self._at(age, now, hyper.scheduled, beta2, gain, per_height)
        return ScheduledValues(*[*found, beta2, gain, per_height, self._per_rms])

    def fill(
        self, known: ScheduledValues, hyper: Hyper, in_place: bool
    ) -> ScheduledValues:
        """The same on the device, copied at once; in place: where the last ones were."""
        table = stacked(known, len(hyper.lr), precise_dtype(self.device))
        if self._table is None or not in_place:
            table = table.to(self.device, non_blocking=True)
            if not in_place:
                return _known(table, hyper)
            self._table = table
        else:
            self._table.copy_(table, non_blocking=True)
        return _known(self._table, hyper)

    def advance(self, hyper: Hyper) -> ScheduledValues:
        """Of the next step, from what the device has: for capture in a CUDA graph."""
        if self._table is None:
            raise RuntimeError(
                "NGOptimizer: expected a step of the same parameters before capture in "
                "a CUDA graph; got none. Make some steps first, on a side stream."
            )
        known = _known(self._table, hyper)
        age = known.count.clone()
        known.count.add_(1)
        now = age.max() + self._behind
        given = known.beta2, known.gain, known.per_height
        _, *found = self._at(age, now, hyper.scheduled, *given)
        found = [x if isinstance(x, Tensor) else torch.full_like(age, x) for x in found]
        return ScheduledValues(known.count, *found, *known[1 + len(found) :])

    def _at(
        self,
        age: Any,
        now: Any,
        scheduled: bool,
        beta2: Any,
        gain: Any,
        per_height: Any,
    ) -> Sequence[Any]:
        """What is given by the steps: `count` to `decay`."""
        c, past = self.config, DECAY**age
        ahead = (1 - c.beta1) * c.nesterov
        first = (1 - c.beta1 ** (age + 1)) * (1 - ahead) + ahead
        if scheduled:
            height = c.step_size
        elif self.total_steps is not None:
            height = c.step_size * with_horizon(age, now, self.total_steps, c.warmup)
        else:
            shape = without_horizon(age, now, c.open_warmup, c.open_constant)
            height = c.open_step_size * shape
        before, after = (1 - past + TINY) ** -0.5, (1 - DECAY * past) ** -0.5
        correction = first**2 * (1 - beta2) / (1 - beta2 ** (age + 1))
        damping = max(c.epsilon, LEAST) * first
        newest = average_weight(age, c.average_power)
        usual = c.straight**2 * (age + TINY) / (age + c.straight_steps)
        by_step = age + 1, before, after, correction, damping**2, newest, usual
        return *by_step, gain * height, per_height * height


def _known(table: Tensor, hyper: Hyper) -> ScheduledValues:
    known = ScheduledValues(*table.unbind())
    if any(map(is_kept, hyper.lr)):
        kept = [x if is_kept(x) else 1.0 for x in hyper.lr]
        lr = torch.stack([torch.as_tensor(x).to(known.gain) for x in kept])
        names = "rate", "decay", "gain", "per_height"
        known = known._replace(**{name: lr * getattr(known, name) for name in names})
    return known


def is_kept(lr: float | Tensor) -> bool:
    """Whether it stays a tensor: reading it is a sync, or autograd follows it."""
    return isinstance(lr, Tensor) and (not lr.is_cpu or lr.requires_grad)


def role_gain(role: ParameterRole, config: SoapConfig) -> float:
    """The factor of the step size that role and fan give."""
    factor = 1.0 if role.role == "matrix" else getattr(config, role.role)
    if not role.fan_in:
        return factor
    return factor * min((role.fan_in / 64) ** -config.fan_exponent, config.fan_cap)
