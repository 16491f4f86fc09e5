"""Step size, weight decay and bias corrections by schedule, role and fan.

They depend on step counts alone, not on gradients. Counts are arrays on the host or,
while a user captures a CUDA graph, tensors on the device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ngopt.devices import Array, precise_dtype, stacked
from ngopt.functional import Hyper
from ngopt.roles.from_graph import ParameterRole
from ngopt.schedule import at_most, average_weight, with_horizon, without_horizon
from ngopt.soap.config import Network, SoapConfig

NOMINAL_STEP = 1e-3  # unit of the user's weight decay: the step size of AdamW's default
MIN_EPSILON = 1e-15  # epsilon at least: nothing is divided by 0
DECAY = 0.95  # of the running mean square of a gradient
TINY = 1e-30
LONG_RUN = 1000.0  # steps of runs from which `largest_size` falls


class ScheduledValues(NamedTuple):
    """Of every parameter, (n,) or a scalar that all share."""

    count: Array  # gradients so far, including this one
    rms_correction_before: Array  # of the running RMS of gradients, before this step
    rms_correction: Array  # after this step
    second_moment_correction: Array  # times the squared correction of momentum
    damping: Array  # added to corrected second moments, in units of the gradient
    average_weight: Array  # weight of the new weights in the average of weights
    largest_size: Array  # of the factor of the step size by weights
    random_walk: Array  # squared distance of a random walk / sum of its squared steps
    step_size: Array  # by schedule, role and fan; times lr, negative
    weight_decay: Array  # by schedule; times lr, negative
    progress: Array  # share of the horizon; 0 if it is unknown
    # constants of the parameters, times lr:
    beta2: Array  # decay of second moments
    peak_step_size: Array  # `step_size` without the schedule
    peak_weight_decay: Array  # `weight_decay` without the schedule
    inverse_init_rms: Array  # 1 / RMS of PyTorch's initial weights; 0 of vectors


class StepSchedule:
    """Computes `ScheduledValues` of a network's parameters.

    table: the values of the last step, (fields, n) on the device; None on a host. lag:
    steps of the run before the first one of the oldest parameter. constants: the values
    that depend on settings alone, of the last step on the host.
    """

    def __init__(self, network: Network, config: SoapConfig):
        self.config = config
        self.total_steps = network.total_steps
        self.device = network.device
        self.table: Tensor | None = None
        self.lag = 0.0
        roles = network.roles
        self._decays = [config.weight_decay * bool(role.blocks) for role in roles]
        self._gains = np.array([role_gain(role, config) for role in roles])
        # PyTorch's initial weights are uniform in +-fan ** -.5: RMS (3 fan) ** -.5
        squares = np.array([3 * (role.fan_in or 0) for role in roles])
        beta2 = [config.beta2, config.beta2_table]
        self._settings: tuple[Any, ...] | None = None  # of the last step
        self.constants = {
            "inverse_init_rms": squares**0.5,
            "beta2": np.array([beta2[role.role == "embedding"] for role in roles]),
        }

    def of_step(
        self,
        ages: Sequence[float],
        now: float,
        hyper: Hyper,
        on_host: bool,
        in_place: bool,
    ) -> ScheduledValues:
        """Values of one step: scalars where all parameters share them, else arrays.

        Args:
            ages: previous gradients of each parameter.
            now: previous steps of the run.
            on_host: whether values stay on the host. Else they are copied to the device
                at once, but for weights of averages.
            in_place: whether the copy is into the tensor of the previous step.
        """
        c = self.config
        lr = {x: 1.0 if must_stay_tensor(x) else float(x) for x in set(hyper.lr)}
        rates = [lr[x] for x in hyper.lr]
        settings = rates, hyper.weight_decay, hyper.scheduled
        if settings != self._settings:
            self._settings = settings
            is_open = self.total_steps is None and not hyper.scheduled
            unit = NOMINAL_STEP / (c.anytime_step_size if is_open else c.step_size)
            decays = []
            for default, decay in zip(self._decays, hyper.weight_decay, strict=True):
                decays.append(default if decay is None else unit * decay)
            negative = -np.array(rates, dtype=np.float64)
            self.constants["peak_step_size"] = negative * self._gains
            self.constants["peak_weight_decay"] = negative * np.array(decays)
        oldest = max(ages)
        self.lag = now - oldest
        age = np.array(ages) if min(ages) < oldest else oldest
        values = self.at(age, now, hyper, **self.constants)
        if on_host:
            return values
        table = stacked(values, len(rates), precise_dtype(self.device))
        if self.table is not None and in_place:
            table = self.table.copy_(table, non_blocking=True)
        else:
            table = table.to(self.device, non_blocking=True)
            self.table = table if in_place else self.table
        on_device = times_lr(table, hyper)
        return on_device._replace(average_weight=values.average_weight)

    def at(
        self, age: Array, now: Array, hyper: Hyper, **constants: Array
    ) -> ScheduledValues:
        """Values of parameters of an age, at a step of the run.

        Args:
            age: previous gradients, a number or (n,).
            now: previous steps of the run, a number or a tensor ().
            hyper: whether learning rates replace the schedule, or all but its warm-up.
            constants: the constant fields of `ScheduledValues`.
        """
        c = self.config
        beta2 = constants["beta2"]
        power = DECAY**age
        ahead = (1 - c.beta1) * c.nesterov
        momentum = (1 - c.beta1 ** (age + 1)) * (1 - ahead) + ahead
        progress = weight = 0.0
        if self.total_steps is None:  # else there are no averages
            weight = average_weight(age, c.average_power)
        if hyper.scheduled:
            height = c.step_size
            if hyper.warms_up:
                steps = (self.total_steps or 0) * c.warmup or c.anytime_warmup
                height = height * at_most((age + 1) / max(steps, 1), 1.0)
        elif self.total_steps is not None:
            height = c.step_size * with_horizon(age, now, self.total_steps, c.warmup)
            progress = now / self.total_steps
        else:
            shape = without_horizon(age, now, c.anytime_warmup, c.anytime_constant)
            height = c.anytime_step_size * shape
        return ScheduledValues(
            count=age + 1,
            rms_correction_before=(1 - power + TINY) ** -0.5,
            rms_correction=(1 - DECAY * power) ** -0.5,
            second_moment_correction=momentum**2
            * (1 - beta2)
            / (1 - beta2 ** (age + 1)),
            damping=(max(c.epsilon, MIN_EPSILON) * momentum) ** 2,
            average_weight=weight,
            largest_size=largest_size(self.total_steps or now + 1, c),
            random_walk=c.path_ratio**2 * (age + TINY) / (age + c.path_ratio_steps),
            step_size=constants["peak_step_size"] * height,
            weight_decay=constants["peak_weight_decay"] * height,
            progress=progress,
            **constants,
        )


def largest_size(steps: Array, config: SoapConfig) -> Array:
    """The limit of the factor by weights in a run of some steps.

    Noise makes weights grow, and steps with them. So in a long run of a network that
    does not need large weights both would grow exponentially.
    """
    short = config.largest_size
    long = min(config.largest_size_of_long_runs, short)
    return long + (short - long) * at_most(LONG_RUN / steps, 1.0) ** 2


def times_lr(table: Tensor, hyper: Hyper) -> ScheduledValues:
    """The rows of a table, multiplied by learning rates that are tensors."""
    values = ScheduledValues(*table.unbind())
    if not any(map(must_stay_tensor, set(hyper.lr))):
        return values
    rates = []
    for lr in hyper.lr:
        rate = torch.as_tensor(lr if must_stay_tensor(lr) else 1.0)
        rates.append(rate.to(values.peak_step_size))
    lr = torch.stack(rates)
    return values._replace(
        step_size=lr * values.step_size,
        weight_decay=lr * values.weight_decay,
        peak_step_size=lr * values.peak_step_size,
        peak_weight_decay=lr * values.peak_weight_decay,
    )


def must_stay_tensor(lr: float | Tensor) -> bool:
    """Whether a learning rate is not read.

    Reading it would be a host sync, or autograd differentiates through it.
    """
    return isinstance(lr, Tensor) and (not lr.is_cpu or lr.requires_grad)


def role_gain(role: ParameterRole, config: SoapConfig) -> float:
    """The factor of the step size by role and fan."""
    factor = 1.0 if role.role == "matrix" else getattr(config, role.role)
    if not role.fan_in:
        return factor
    return factor * (max(role.fan_in, 64) / 64) ** -config.fan_exponent


def short_run_multiplier(config: SoapConfig, total_steps: int | None) -> float:
    ratio = config.short_run_steps / (total_steps or config.short_run_steps)
    return max(ratio, 1.0) ** config.short_run_exponent
