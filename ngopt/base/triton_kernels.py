"""The functions of `ngopt.base.elementwise` as one Triton kernel each.

A kernel reads and writes every value once. Functions made by `torch.compile` check
guards before each call, so that their launches cost ten times as much.

Arguments are those of the functions there. Values (rows, lanes) are float32 or have the
dtype of matrix products. Scalars (rows, 1) are float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ngopt.base.cuda_graphs import WeightRows

ELEMENTS = 2048  # of one program


@triton.jit
def _places(rows, LANES: tl.constexpr, ROWS: tl.constexpr):
    """Indices of rows (ROWS, 1) and of elements (ROWS, LANES), and the mask of rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = row * LANES + tl.arange(0, LANES)[None, :]
    return row, i, row < rows


@triton.jit
def _value(x, i, mask):
    return tl.load(x + i, mask, 0.0).to(tl.float32)


@triton.jit
def _accumulate(
    grad, momentum, grad_scale, decay, out, ahead, rows, alpha, nesterov,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, mask = _places(rows, LANES, ROWS)
    g = _value(grad, i, mask)
    g = tl.where(tl.abs(g) < float("inf"), g, 0.0)
    g *= _value(grad_scale, row, mask)
    m = _value(momentum, i, mask) * _value(decay, row, mask) + alpha * g
    tl.store(momentum + i, m, mask)
    tl.store(out + i, g.to(out.dtype.element_ty), mask)
    m += nesterov * (g - m)
    tl.store(ahead + i, m.to(ahead.dtype.element_ty), mask)


@triton.jit
def _precondition(
    grad, momentum, second, decay, correction, damping, rows,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, mask = _places(rows, LANES, ROWS)
    g = _value(grad, i, mask)
    v = _value(second, i, mask) * _value(decay, row, mask) + g * g
    tl.store(second + i, v, mask)
    v = _value(damping, row, mask) + v * _value(correction, row, mask)
    u = _value(momentum, i, mask) * tl.rsqrt(tl.where(mask, v, 1.0))
    tl.store(momentum + i, u.to(momentum.dtype.element_ty), mask)


@triton.jit
def _change(
    u, momentum, weights, step_size, decay, out, rows,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, mask = _places(rows, LANES, ROWS)
    step = tl.where(_value(momentum, i, mask) != 0, _value(u, i, mask), 0.0)
    decayed = _value(weights, i, mask) * _value(decay, row, mask)
    tl.store(out + i, decayed + step * _value(step_size, row, mask), mask)


@triton.jit
def _change_weights(
    u, momentum, addresses, counts, step_size, decay, measured, rows, first,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, mask = _places(rows, LANES, ROWS)
    lane = tl.arange(0, LANES)[None, :]
    has_weight = lane < tl.load(counts + row, mask, 0)
    start = tl.load(addresses + row, mask, 0).to(tl.pointer_type(tl.float32))
    place = start + lane
    w = tl.load(place, has_weight, 0.0)
    step = tl.where(_value(momentum, i, mask) != 0, _value(u, i, mask), 0.0)
    delta = w * _value(decay, row, mask) + step * _value(step_size, row, mask)
    tl.store(place, w + delta, has_weight)
    tl.store(measured + i - first * LANES, delta, mask & (row >= first))


def accumulate(
    grad: Tensor, momentum: Tensor, scalars: Any, config: Any, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    scaled = torch.empty_like(grad, dtype=dtype)
    ahead = torch.empty_like(grad, dtype=dtype)
    inputs = grad, momentum, scalars.grad_scale, scalars.momentum_decay
    alpha = 1 - config.beta1
    rest = len(grad), alpha, alpha * config.nesterov
    _launch(_accumulate, momentum, *inputs, scaled, ahead, *rest)
    return scaled, ahead


def precondition(
    grad: Tensor, momentum: Tensor, second: Tensor, scalars: Any
) -> Tensor:
    rows = scalars.second_moment_decay, scalars.second_moment_correction
    values = grad, momentum, second, *rows, scalars.damping
    _launch(_precondition, second, *values, len(grad))
    return momentum


def change(u: Tensor, momentum: Tensor, weights: Tensor, scalars: Any) -> Tensor:
    delta = torch.empty_like(momentum)
    values = u, momentum, weights, scalars.step_size, scalars.weight_decay, delta
    _launch(_change, momentum, *values, len(u))
    return delta


def change_weights(
    u: Tensor, momentum: Tensor, weights: WeightRows, scalars: Any, first: int
) -> Tensor:
    """Adds `change` to the weights where they are; returns that of rows from first."""
    measured = torch.empty_like(momentum[first:])
    values = u, momentum, *weights, scalars.step_size, scalars.weight_decay, measured
    _launch(_change_weights, momentum, *values, len(u), first)
    return measured


def _launch(kernel: Any, like: Tensor, *arguments: Any) -> None:
    """like: (rows, lanes), lanes a power of two."""
    rows, lanes = like.shape
    rows_of_program = ELEMENTS // lanes
    grid = (triton.cdiv(rows, rows_of_program),)
    with torch.cuda.device_of(like):
        kernel[grid](*arguments, LANES=lanes, ROWS=rows_of_program)
