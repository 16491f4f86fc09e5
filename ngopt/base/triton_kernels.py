"""The functions of `ngopt.base.elementwise` as one Triton kernel each.

Each reads and writes every value once, and is launched at the cost of one call: for the
functions that `torch.compile` makes, checks before the call cost ten times as much.
Arguments are those of the functions there; values (rows, lanes) are float32 or, for
products, what these take, and numbers (rows, 1) are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048  # of a program, some rows


@triton.jit
def _places(rows, LANES: tl.constexpr, ROWS: tl.constexpr):
    """Numbers of rows (ROWS, 1) and of elements (ROWS, LANES), and which there are."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = row * LANES + tl.arange(0, LANES)[None, :]
    return row, i, row < rows


@triton.jit
def _value(x, i, is_there):
    return tl.load(x + i, is_there, 0.0).to(tl.float32)


@triton.jit
def _accumulate(
    grad, momentum, multiplier, kept, out, ahead, rows, alpha, nesterov,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, is_there = _places(rows, LANES, ROWS)
    g = _value(grad, i, is_there)
    g = tl.where(tl.abs(g) < float("inf"), g, 0.0) * _value(multiplier, row, is_there)
    m = _value(momentum, i, is_there) * _value(kept, row, is_there) + alpha * g
    tl.store(momentum + i, m, is_there)
    tl.store(out + i, g.to(out.dtype.element_ty), is_there)
    tl.store(ahead + i, (m + nesterov * (g - m)).to(ahead.dtype.element_ty), is_there)


@triton.jit
def _precondition(
    grad, ahead, second, kept, correction, damping, rows,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, is_there = _places(rows, LANES, ROWS)
    g = _value(grad, i, is_there)
    v = _value(second, i, is_there) * _value(kept, row, is_there) + g * g
    tl.store(second + i, v, is_there)
    v = _value(damping, row, is_there) + v * _value(correction, row, is_there)
    u = _value(ahead, i, is_there) * tl.rsqrt(tl.where(is_there, v, 1.0))
    tl.store(ahead + i, u.to(ahead.dtype.element_ty), is_there)


@triton.jit
def _change(
    u, momentum, weights, rate, decay, out, rows,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, is_there = _places(rows, LANES, ROWS)
    step = tl.where(_value(momentum, i, is_there) != 0, _value(u, i, is_there), 0.0)
    found = _value(weights, i, is_there) * _value(decay, row, is_there)
    tl.store(out + i, found + step * _value(rate, row, is_there), is_there)


def accumulate(
    grad: Tensor, momentum: Tensor, numbers: Any, config: Any, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(grad, dtype=dtype)
    ahead = torch.empty_like(grad, dtype=dtype)
    values = grad, momentum, numbers.multiplier, numbers.momentum, out, ahead
    alpha = 1 - config.beta1
    _launch(_accumulate, momentum, *values, len(grad), alpha, alpha * config.nesterov)
    return out, ahead


def precondition(grad: Tensor, ahead: Tensor, second: Tensor, numbers: Any) -> Tensor:
    values = grad, ahead, second, numbers.second, numbers.correction, numbers.damping
    _launch(_precondition, second, *values, len(grad))
    return ahead


def change(u: Tensor, momentum: Tensor, weights: Tensor, numbers: Any) -> Tensor:
    out = torch.empty_like(momentum)
    values = u, momentum, weights, numbers.rate, numbers.decay, out
    _launch(_change, momentum, *values, len(u))
    return out


def _launch(kernel: Any, like: Tensor, *arguments: Any) -> None:
    """like: (rows, lanes), lanes a power of two."""
    rows, lanes = like.shape
    count = ELEMENTS // lanes
    with torch.cuda.device_of(like):
        kernel[(triton.cdiv(rows, count),)](*arguments, LANES=lanes, ROWS=count)
