"""Elementwise equations of the default: values (rows, lanes), scalars (rows, 1).

`ngopt.base.triton_kernels` has the same functions as Triton kernels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ngopt import devices
from ngopt.base.config import SoapConfig
from ngopt.devices import Array


class StepScalars(NamedTuple):
    """Scalars of a step, per parameter (n,) or per row of a bucket (rows, 1)."""

    grad_scale: Array  # factor of the gradient
    momentum_decay: Array
    second_moment_decay: Array
    second_moment_correction: Array
    damping: Array  # added to corrected second moments
    step_size: Array  # negative
    weight_decay: Array  # negative


def accumulate(
    grad: Tensor,
    momentum: Tensor,
    scalars: StepScalars,
    config: SoapConfig,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The scaled gradient and Nesterov's momentum, in the dtype of matrix products.

    Updates `momentum` in place. Elements of the gradient that are not finite become 0.
    """
    share = 1 - config.beta1
    ahead = share * config.nesterov
    grad = grad.nan_to_num(0.0, 0.0, 0.0)
    if devices.writes_out(momentum):
        part = grad.mul_(share * scalars.grad_scale)
        torch.addcmul(part, momentum, scalars.momentum_decay, out=momentum)
        grad = torch.mul(part, 1 / share, out=torch.empty_like(part, dtype=dtype))
        return grad, momentum.to(dtype).lerp(grad, ahead)
    grad = grad.mul_(scalars.grad_scale)
    momentum.mul_(scalars.momentum_decay).add_(grad, alpha=share)
    return grad.to(dtype), momentum.lerp(grad, ahead).to(dtype)


def precondition(
    grad: Tensor, momentum: Tensor, second: Tensor, scalars: StepScalars
) -> Tensor:
    """Nesterov's momentum divided by the root of second moments, in the eigenbasis.

    Updates `momentum` and the second moments `second` in place.
    """
    squares = grad.square()
    decay = scalars.second_moment_decay
    damping = scalars.damping
    correction = scalars.second_moment_correction
    if devices.writes_out(second):
        torch.addcmul(squares, second, decay, out=second)
        root = torch.empty_like(momentum)
        torch.addcmul(damping, second, correction, out=root)
    else:
        second.mul_(decay).add_(squares)
        root = torch.addcmul(damping, second, correction)
    return momentum.mul_(root.rsqrt_())


def change(
    u: Tensor, momentum: Tensor, weights: Tensor, scalars: StepScalars
) -> Tensor:
    """step_size * u + weight_decay * weights. Overwrites `u`.

    Weights whose gradient was always zero have momentum 0: they only decay.
    """
    u = u.masked_fill_(momentum == 0, 0.0)
    return torch.addcmul(weights * scalars.weight_decay, u, scalars.step_size)
