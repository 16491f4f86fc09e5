"""Elementwise equations of the default: values (rows, lanes), scalars (rows, 1).

`ngopt.accelerator` has the same functions with fewer kernels and passes over memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.devices import Array
from ngopt.soap.config import SoapConfig


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
    grad = grad.nan_to_num(0.0, 0.0, 0.0).mul_(scalars.grad_scale)
    momentum.mul_(scalars.momentum_decay).add_(grad, alpha=share)
    ahead = momentum.lerp(grad, share * config.nesterov)
    return grad.to(dtype), ahead.to(dtype)


def precondition(
    grad: Tensor, momentum: Tensor, second: Tensor, scalars: StepScalars, first: int
) -> tuple[Tensor, Tensor]:
    """Nesterov's momentum divided by the root of second moments, in the eigenbasis.

    Updates `momentum` and the second moments `second` in place. Also returns the
    inverse root of rows from `first` on.
    """
    second.mul_(scalars.second_moment_decay).add_(grad.square())
    squares = torch.addcmul(scalars.damping, second, scalars.second_moment_correction)
    inverse_root = squares.rsqrt_()
    return momentum.mul_(inverse_root), inverse_root[first:]


def change(
    u: Tensor, momentum: Tensor, weights: Tensor, scalars: StepScalars
) -> Tensor:
    """step_size * u + weight_decay * weights. Overwrites `u`.

    Weights whose gradient was always zero have momentum 0: they only decay.
    """
    u = u.to(weights.dtype).mul_(momentum.sgn().square())  # faster than a mask
    return u.mul_(scalars.step_size).add_(weights * scalars.weight_decay)


class Elementwise(NamedTuple):
    """Implementations of these functions, and one that accelerators may add."""

    accumulate: Callable[..., tuple[Tensor, Tensor]] = accumulate
    precondition: Callable[..., tuple[Tensor, Tensor]] = precondition
    change: Callable[..., Tensor] = change
    # adds the change to the weights where they are: (u, momentum, places of weights,
    # scalars, first measured row) -> changes of measured rows
    change_weights: Callable[..., Tensor] | None = None


ELEMENTWISE = Elementwise()
