"""The functions of `ngopt.soap.elementwise` as one Triton kernel each.

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

from ngopt.accelerator.cuda_graphs import WeightRows
from ngopt.soap.config import SoapConfig
from ngopt.soap.elementwise import Elementwise, StepScalars

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
    grad, momentum, second, decay, correction, damping, roots, rows, first,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, i, mask = _places(rows, LANES, ROWS)
    g = _value(grad, i, mask)
    v = _value(second, i, mask) * _value(decay, row, mask) + g * g
    tl.store(second + i, v, mask)
    v = _value(damping, row, mask) + v * _value(correction, row, mask)
    inverse_root = tl.rsqrt(tl.where(mask, v, 1.0))
    u = _value(momentum, i, mask) * inverse_root
    tl.store(momentum + i, u.to(momentum.dtype.element_ty), mask)
    tl.store(roots + i - first * LANES, inverse_root, mask & (row >= first))


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
    grad: Tensor,
    momentum: Tensor,
    scalars: StepScalars,
    config: SoapConfig,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    scaled = torch.empty_like(grad, dtype=dtype)
    ahead = torch.empty_like(grad, dtype=dtype)
    share = 1 - config.beta1
    _launch(
        _accumulate,
        momentum.shape,
        grad=grad,
        momentum=momentum,
        grad_scale=scalars.grad_scale,
        decay=scalars.momentum_decay,
        out=scaled,
        ahead=ahead,
        alpha=share,
        nesterov=share * config.nesterov,
    )
    return scaled, ahead


def precondition(
    grad: Tensor, momentum: Tensor, second: Tensor, scalars: StepScalars, first: int
) -> tuple[Tensor, Tensor]:
    inverse_roots = torch.empty_like(second[first:])
    _launch(
        _precondition,
        second.shape,
        grad=grad,
        momentum=momentum,
        second=second,
        decay=scalars.second_moment_decay,
        correction=scalars.second_moment_correction,
        damping=scalars.damping,
        roots=inverse_roots,
        first=first,
    )
    return momentum, inverse_roots


def change(
    u: Tensor, momentum: Tensor, weights: Tensor, scalars: StepScalars
) -> Tensor:
    delta = torch.empty_like(momentum)
    _launch(
        _change,
        momentum.shape,
        u=u,
        momentum=momentum,
        weights=weights,
        step_size=scalars.step_size,
        decay=scalars.weight_decay,
        out=delta,
    )
    return delta


def change_weights(
    u: Tensor, momentum: Tensor, weights: WeightRows, scalars: StepScalars, first: int
) -> Tensor:
    """Adds `change` to the weights where they are; returns that of rows from first."""
    measured = torch.empty_like(momentum[first:])
    _launch(
        _change_weights,
        momentum.shape,
        u=u,
        momentum=momentum,
        addresses=weights.addresses,
        counts=weights.counts,
        step_size=scalars.step_size,
        decay=scalars.weight_decay,
        measured=measured,
        first=first,
    )
    return measured


def _launch(kernel: Any, shape: torch.Size, **arguments: Any) -> None:
    """shape: (rows, lanes), lanes a power of two. arguments: of the kernel, by name."""
    rows, lanes = shape
    rows_of_program = ELEMENTS // lanes
    grid = (triton.cdiv(rows, rows_of_program),)
    first_tensor = next(iter(arguments.values()))
    with torch.cuda.device_of(first_tensor):
        kernel[grid](**arguments, rows=rows, LANES=lanes, ROWS=rows_of_program)


ELEMENTWISE = Elementwise(accumulate, precondition, change, change_weights)
