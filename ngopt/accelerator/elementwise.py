"""The functions of `ngopt.soap.elementwise` with fewer launches and passes over memory.

For accelerators without Triton kernels. Neither autograd nor vmap has `out=`, and in
the caches of a CPU it saves nothing.
"""

import torch
from torch import Tensor

from ngopt.soap.config import SoapConfig
from ngopt.soap.elementwise import Elementwise, StepScalars


def accumulate(
    grad: Tensor,
    momentum: Tensor,
    scalars: StepScalars,
    config: SoapConfig,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    share = 1 - config.beta1
    grad = grad.nan_to_num(0.0, 0.0, 0.0).mul_(share * scalars.grad_scale)
    torch.addcmul(grad, momentum, scalars.momentum_decay, out=momentum)
    scaled = torch.mul(grad, 1 / share, out=torch.empty_like(grad, dtype=dtype))
    return scaled, momentum.to(dtype).lerp(scaled, share * config.nesterov)


def precondition(
    grad: Tensor, momentum: Tensor, second: Tensor, scalars: StepScalars, first: int
) -> tuple[Tensor, Tensor]:
    torch.addcmul(grad.square(), second, scalars.second_moment_decay, out=second)
    correction = scalars.second_moment_correction
    squares = torch.empty_like(momentum)
    torch.addcmul(scalars.damping, second, correction, out=squares)
    inverse_root = squares.rsqrt_()
    return momentum.mul_(inverse_root), inverse_root[first:]


def change(
    u: Tensor, momentum: Tensor, weights: Tensor, scalars: StepScalars
) -> Tensor:
    u = u.masked_fill_(momentum == 0, 0.0)
    return torch.addcmul(weights * scalars.weight_decay, u, scalars.step_size)


ELEMENTWISE = Elementwise(accumulate, precondition, change)
