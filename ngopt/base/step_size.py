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
from ngopt.base.gradient_scale import DECAY
from ngopt.devices import precise_dtype
from ngopt.functional import Hyper
from ngopt.roles import ParameterRole
from ngopt.schedule import average_weight, with_horizon, without_horizon

NOMINAL_STEP = 1e-3  # unit of the user's weight decay: the step size of AdamW's default
# RMS of weights, in that of PyTorch's initial ones, that the step size follows: layers
# that begin at zero must leave it.
FOLLOWED = (0.25, 10.0)
TINY = 1e-30


class Known(NamedTuple):
    """What is known of every parameter before a step, (n,)."""

    count: Tensor  # gradients so far, this one included
    before: Tensor  # correction of the running RMS of gradients, before this step
    after: Tensor  # and after it
    correction: Tensor  # of second moments, with that of momentum, squared
    damping: Tensor  # of the mean square beside them
    height: Tensor  # of the schedule
    newest: Tensor  # weight of the new weights in their average
    lr: Tensor
    decay: Tensor  # of weights, in step sizes
    gain: Tensor  # of role and fan
    per_rms: Tensor  # the step size goes with per_rms * RMS(weights) + offset
    offset: Tensor


class StepTable:
    """Makes `Known` of the parameters of these roles."""

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
        per_rms = np.array([3 * (role.fan_in or 0) for role in roles]) ** 0.5
        gains = np.array([role_gain(role, config) for role in roles])
        self._constant = gains, per_rms, per_rms == 0
        self._table: Tensor | None = None

    def fill(self, age: np.ndarray, now: float, hyper: Hyper) -> Known:
        """Known to the host, and copied to the device at once.

        age: updates of each parameter before this one. now: steps of the training
        before this one.
        """
        lr = [0.0 if _is_kept(x) else float(x) for x in hyper.lr]
        is_open = self.total_steps is None and not hyper.scheduled
        c = self.config
        unit = NOMINAL_STEP / (c.open_step_size if is_open else c.step_size)
        decay = self._decays + unit * np.array(hyper.weight_decay)
        ages = age if age.min() < age.max() else float(age[0])
        rows = *self._at(ages, now, hyper.scheduled), lr, decay, *self._constant
        table = np.empty((len(Known._fields), len(age)))
        for row, values in zip(table, rows, strict=True):
            row[:] = values
        found = torch.from_numpy(table)
        found = found.to(self.device, precise_dtype(self.device), non_blocking=True)
        self._table, self._behind = found, now - age.max()
        return _known(found, hyper)

    def advance(self, hyper: Hyper) -> Known:
        """Of the next step, from what the device has: for capture in a CUDA graph."""
        if self._table is None:
            raise RuntimeError(
                "NGOptimizer: expected a step of the same parameters before capture in "
                "a CUDA graph; got none. Make some steps first, on a side stream."
            )
        known = _known(self._table, hyper)
        age = known.count.clone()
        known.count.add_(1)
        _, *found = self._at(age, age.max() + self._behind, hyper.scheduled)
        found = [x if isinstance(x, Tensor) else torch.full_like(age, x) for x in found]
        return Known(known.count, *found, *known[1 + len(found) :])

    def _at(self, age: Any, now: Any, scheduled: bool) -> Sequence[Any]:
        """What is given by the steps: `count` to `newest`."""
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
        return (
            age + 1,
            (1 - past + TINY) ** -0.5,
            (1 - DECAY * past) ** -0.5,
            first**2 / (1 - c.beta2 ** (age + 1)),
            (c.epsilon * first) ** 2,
            height,
            average_weight(age, c.average_power),
        )


def _known(table: Tensor, hyper: Hyper) -> Known:
    known = Known(*table.unbind())
    if any(map(_is_kept, hyper.lr)):
        lr = [torch.as_tensor(x).to(known.lr) for x in hyper.lr]
        known = known._replace(lr=torch.stack(lr))
    return known


def _is_kept(lr: float | Tensor) -> bool:
    """Whether it stays a tensor: reading it is a sync, or autograd follows it."""
    return isinstance(lr, Tensor) and (not lr.is_cpu or lr.requires_grad)


def role_gain(role: ParameterRole, config: SoapConfig) -> float:
    """The factor of the step size that role and fan give."""
    factor = 1.0 if role.role == "matrix" else getattr(config, role.role)
    if not role.fan_in:
        return factor
    return factor * min((role.fan_in / 64) ** -config.fan_exponent, config.fan_cap)
