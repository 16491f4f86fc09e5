"""The default element by element: values (rows, lanes), and numbers (rows, 1).

`ngopt.base.triton_kernels` has the same functions as kernels of Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.config import SoapConfig
from ngopt.devices import Array


class RowNumbers(NamedTuple):
    """Numbers of a step, of parameters (n,) or of rows of a bucket (rows, 1)."""

    multiplier: Array  # of the gradient
    momentum: Array  # of the old one
    second: Array  # of the old sum of squares
    correction: Array  # of the new one
    damping: Array  # beside them
    rate: Array  # of the direction, below 0
    decay: Array  # of the weights, below 0


def accumulate(
    grad: Tensor,
    momentum: Tensor,
    numbers: RowNumbers,
    config: SoapConfig,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The gradient in units of its scale, and Nesterov's momentum, for products."""
    ahead = (1 - config.beta1) * config.nesterov
    grad = grad.nan_to_num(0.0, 0.0, 0.0).mul_(numbers.multiplier)
    momentum.mul_(numbers.momentum).add_(grad, alpha=1 - config.beta1)
    return grad.to(dtype), momentum.lerp(grad, ahead).to(dtype)


def precondition(
    grad: Tensor, ahead: Tensor, second: Tensor, numbers: RowNumbers
) -> Tensor:
    """Nesterov's momentum by the root of the second moments, in the eigenbasis."""
    second.mul_(numbers.second).add_(grad.square())
    scale = torch.addcmul(numbers.damping, second, numbers.correction).rsqrt_()
    return ahead.mul_(scale)


def change(u: Tensor, momentum: Tensor, weights: Tensor, numbers: RowNumbers) -> Tensor:
    """rate * u + decay * weights; what never had a gradient only decays."""
    u = u * (momentum != 0)
    return torch.addcmul(weights * numbers.decay, u, numbers.rate)
