"""Step size, weight decay and bias corrections by schedule, role and fan.

They depend on step counts alone, not on gradients. Counts are arrays on the host or,
during capture in a CUDA graph, tensors on the device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ngopt.base.config import SoapConfig
from ngopt.base.gradient_clipping import DECAY
from ngopt.devices import Array, Pair, precise_dtype, stacked
from ngopt.functional import Hyper
from ngopt.roles.from_graph import ParameterRole
from ngopt.schedule import average_weight, with_horizon, without_horizon

NOMINAL_STEP = 1e-3  # unit of the user's weight decay: the step size of AdamW's default
MIN_EPSILON = 1e-15  # epsilon at least: nothing is divided by 0
TINY = 1e-30


class ScheduledValues(NamedTuple):
    """Of every parameter, (n,) or a scalar that all share."""

    count: Array  # gradients so far, including this one
    rms_correction_before: Array  # of the running RMS of gradients, before this step
    rms_correction: Array  # after this step
    second_moment_correction: Array  # times the squared correction of momentum
    damping: Array  # added to corrected second moments, in units of the gradient
    average_weight: Array  # weight of the new weights in the average of weights
    random_walk: Array  # squared distance of a random walk / sum of its squared steps
    step_size: Array  # by schedule, role and fan; times lr, negative
    weight_decay: Array  # by schedule; times lr, negative
    beta2: Array  # decay of second moments
    constant_step_size: Array  # `step_size` without the schedule
    constant_weight_decay: Array  # `weight_decay` without the schedule
    inverse_init_rms: Array  # 1 / RMS of PyTorch's initial weights; 0 of vectors


class StepSchedule:
    """Computes `ScheduledValues` of parameters with these roles."""

    def __init__(
        self,
        config: SoapConfig,
        roles: Sequence[ParameterRole],
        total_steps: int | None,
        device: torch.device,
    ):
        self.config = config
        self.total_steps = total_steps
        self.device = device
        decays, squares, gains, beta2 = [], [], [], []
        for role in roles:
            decays.append(config.weight_decay * bool(role.blocks))
            # PyTorch's initial weights are uniform in +-fan ** -.5: RMS (3 fan) ** -.5
            squares.append(3 * (role.fan_in or 0))
            gains.append(role_gain(role, config))
            is_table = role.role == "embedding"
            beta2.append(config.beta2_table if is_table else config.beta2)
        self._decays = decays
        self._inverse_init_rms = np.array(squares) ** 0.5
        self._gains = np.array(gains)
        self._beta2 = np.array(beta2)
        self._table: Tensor | None = None

    def on_host(
        self, ages: Sequence[float], now: float, hyper: Hyper
    ) -> ScheduledValues:
        """Values of one step: scalars where all parameters share them, else arrays.

        ages: previous updates of each parameter. now: previous steps of the training.
        """
        c = self.config
        oldest = max(ages)
        is_open = self.total_steps is None and not hyper.scheduled
        unit = NOMINAL_STEP / (c.open_step_size if is_open else c.step_size)
        lr = list(hyper.lr)
        if has_tensors(lr):
            lr = [1.0 if is_kept(x) else float(x) for x in lr]
        decay = []
        for default, own in zip(self._decays, hyper.weight_decay, strict=True):
            decay.append(default if own is None else unit * own)
        rates = -np.array(lr, dtype=np.float64)
        constants = rates * self._gains, rates * np.array(decay)
        self._lag = now - oldest
        age = np.array(ages) if min(ages) < oldest else oldest
        scheduled = self._scheduled(age, now, hyper.scheduled, self._beta2, constants)
        fixed = self._beta2, *constants, self._inverse_init_rms
        return ScheduledValues._make([*scheduled, *fixed])

    def to_device(
        self, values: ScheduledValues, hyper: Hyper, in_place: bool
    ) -> ScheduledValues:
        """The values on the device by one copy; in place: into the previous tensor."""
        table = stacked(values, len(hyper.lr), precise_dtype(self.device))
        if self._table is not None and in_place:
            self._table.copy_(table, non_blocking=True)
            return _times_lr(self._table, hyper)
        table = table.to(self.device, non_blocking=True)
        if in_place:
            self._table = table
        return _times_lr(table, hyper)

    def advance(self, hyper: Hyper) -> ScheduledValues:
        """Values of the next step, computed on the device during a capture.

        Raises RuntimeError if no step was made before.
        """
        if self._table is None:
            raise RuntimeError(
                "NGOptimizer: expected a step of the same parameters before capture in "
                "a CUDA graph; got none. Make some steps first, on a side stream."
            )
        values = _times_lr(self._table, hyper)
        age = values.count.clone()
        values.count.add_(1)
        now = age.max() + self._lag
        constants = values.constant_step_size, values.constant_weight_decay
        scheduled = self._scheduled(age, now, hyper.scheduled, values.beta2, constants)
        new = [values.count]
        for x in scheduled[1:]:
            new.append(x if isinstance(x, Tensor) else torch.full_like(age, x))
        return ScheduledValues(*new, *values[len(new) :])

    def _scheduled(
        self, age: Any, now: Any, has_scheduler: bool, beta2: Any, constants: Pair
    ) -> Sequence[Any]:
        """The fields of `ScheduledValues` from `count` to `weight_decay`.

        constants: `constant_step_size` and `constant_weight_decay`.
        """
        c = self.config
        power = DECAY**age
        ahead = (1 - c.beta1) * c.nesterov
        momentum = (1 - c.beta1 ** (age + 1)) * (1 - ahead) + ahead
        if has_scheduler:
            height = c.step_size
        elif self.total_steps is not None:
            height = c.step_size * with_horizon(age, now, self.total_steps, c.warmup)
        else:
            shape = without_horizon(age, now, c.open_warmup, c.open_constant)
            height = c.open_step_size * shape
        correction = momentum**2 * (1 - beta2) / (1 - beta2 ** (age + 1))
        damping = max(c.epsilon, MIN_EPSILON) * momentum
        return (
            age + 1,
            (1 - power + TINY) ** -0.5,
            (1 - DECAY * power) ** -0.5,
            correction,
            damping**2,
            average_weight(age, c.average_power),
            c.straight**2 * (age + TINY) / (age + c.straight_steps),
            constants[0] * height,
            constants[1] * height,
        )


def _times_lr(table: Tensor, hyper: Hyper) -> ScheduledValues:
    """The rows of a table, multiplied by learning rates that are tensors."""
    values = ScheduledValues(*table.unbind())
    if not has_kept(hyper.lr):
        return values
    kept = []
    for x in hyper.lr:
        factor = torch.as_tensor(x if is_kept(x) else 1.0)
        kept.append(factor.to(values.constant_step_size))
    lr = torch.stack(kept)
    return values._replace(
        step_size=lr * values.step_size,
        weight_decay=lr * values.weight_decay,
        constant_step_size=lr * values.constant_step_size,
        constant_weight_decay=lr * values.constant_weight_decay,
    )


def has_tensors(values: Sequence[float | Tensor]) -> bool:
    # a subclass check for each type: there are hundreds of values
    return any(issubclass(kind, Tensor) for kind in set(map(type, values)))


def has_kept(rates: Sequence[float | Tensor]) -> bool:
    return has_tensors(rates) and any(map(is_kept, rates))


def is_kept(lr: float | Tensor) -> bool:
    """Whether a learning rate stays a tensor.

    Reading it would be a host sync, or autograd differentiates through it.
    """
    return isinstance(lr, Tensor) and (not lr.is_cpu or lr.requires_grad)


def role_gain(role: ParameterRole, config: SoapConfig) -> float:
    """The factor of the step size by role and fan."""
    factor = 1.0 if role.role == "matrix" else getattr(config, role.role)
    if not role.fan_in:
        return factor
    by_fan = (role.fan_in / 64) ** -config.fan_exponent
    return factor * min(by_fan, config.fan_cap)


def lengthening(config: SoapConfig, total_steps: int | None) -> float:
    """The factor of the step size of short trainings."""
    ratio = config.short / (total_steps or config.short)
    return max(ratio, 1.0) ** config.short_exponent
