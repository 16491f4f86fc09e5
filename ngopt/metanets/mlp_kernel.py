"""The update MLP as one Triton kernel, from weight, gradient and momenta to the update.

Hidden values stay in registers. With one call for each layer they are written to memory
and read again, about 600 bytes an element; the kernel reads 28 bytes and writes 4.
"""

from collections.abc import Sequence
from math import exp
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ngopt.metanets.features import LOG_CUTOFF

# Elements and warps of a program: 154 registers a thread on an H100, no spills.
BLOCK, WARPS = 256, 4
# Columns of a product, the fewest that Triton allows.
TILE = 16


@triton.jit
def _value(column, i, is_there):
    return tl.load(column + i, is_there, 0.0).to(tl.float32)


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0.0, x)  # nan stays


@triton.jit
def _updates(
    x0, x1, x2, x3, x4, x5, x6, context, w1, b1, w2, b2, w3, b3, out, n,
    scale, magnitude_scale, HIDDEN: tl.constexpr, CONTEXT: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, LEAST: tl.constexpr,
    CUTOFF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_there = i < n
    h = tl.arange(0, HIDDEN)
    f = tl.arange(0, TILE)

    # the columns and zeros, (BLOCK, 8); each join adds the next lower bit of the number
    a = tl.join(_value(x0, i, is_there), _value(x4, i, is_there))
    b = tl.join(_value(x2, i, is_there), _value(x6, i, is_there))
    c = tl.join(_value(x1, i, is_there), _value(x5, i, is_there))
    d = _value(x3, i, is_there)
    d = tl.join(d, tl.zeros_like(d))
    x = tl.join(tl.join(a, b), tl.join(c, d)).reshape(BLOCK, 8)

    # `ngopt.metanets.features.preprocess`: log-magnitude, then sign, of each column
    size = tl.abs(x)
    log = tl.log(tl.where(size < LEAST, LEAST, size)) * (1 / CUTOFF)
    sign = tl.where(size < LEAST, x * (1 / LEAST), tl.where(x < 0, -1.0, 1.0))
    features = tl.join(log, sign).reshape(BLOCK, TILE)

    row = w1 + h[None, :] * (14 + CONTEXT)
    place = (f // 2 + 7 * (f % 2))[:, None]
    weight = tl.load(row + place, (f < 14)[:, None], 0.0).to(tl.float32)
    hidden = tl.dot(features, weight, input_precision=PRECISION)
    hidden += tl.load(b1 + h).to(tl.float32)[None, :]
    if CONTEXT:
        has = (f < CONTEXT)[None, :]
        to_context = context + i[:, None] * CONTEXT + f[None, :]
        values = tl.load(to_context, is_there[:, None] & has, 0.0).to(tl.float32)
        weight = tl.load(row + 14 + f[:, None], has.trans(), 0.0).to(tl.float32)
        hidden = tl.dot(values, weight, hidden, input_precision=PRECISION)
    hidden = _relu(hidden)

    weight = tl.load(w2 + h[None, :] * HIDDEN + h[:, None]).to(tl.float32)
    hidden = tl.dot(hidden, weight, input_precision=PRECISION)
    hidden = _relu(hidden + tl.load(b2 + h).to(tl.float32)[None, :])

    weight = tl.load(w3 + h).to(tl.float32)
    direction = tl.sum(hidden * weight[None, :], 1)
    direction += tl.load(b3).to(tl.float32)
    weight = tl.load(w3 + HIDDEN + h).to(tl.float32)
    magnitude = tl.sum(hidden * weight[None, :], 1)
    magnitude += tl.load(b3 + 1).to(tl.float32)
    update = scale * direction * tl.exp(magnitude_scale * magnitude)
    tl.store(out + i, update, is_there)


def launch(
    columns: Sequence[Tensor],
    context: Tensor | None,
    weights: Sequence[Tensor],
    scales: Sequence[float],
) -> Tensor:
    """See `ngopt.metanets.update_mlp.mlp_updates`."""
    out = torch.empty_like(columns[0], dtype=torch.float32)
    n = len(out)
    hidden = len(weights[0])
    if not n:
        return out
    context = None if context is None else context.contiguous()
    programs: Any = _updates[(triton.cdiv(n, BLOCK),)]
    with torch.cuda.device_of(out):
        programs(
            *[x.contiguous() for x in columns],
            context,
            *[x.contiguous() for x in weights],
            out,
            n,
            *scales,
            HIDDEN=hidden,
            CONTEXT=0 if context is None else context.shape[-1],
            BLOCK=BLOCK,
            TILE=TILE,
            LEAST=exp(-LOG_CUTOFF),
            CUTOFF=LOG_CUTOFF,
            PRECISION=_precision(weights[0]),
            num_warps=WARPS,
        )
    return out


def _precision(weight: Tensor) -> str:
    """Of products: float32, or TF32 for weights of 16 bits, which it holds exactly."""
    if weight.itemsize > 2 or not weight.is_cuda or torch.version.hip:
        return "ieee"
    is_new = torch.cuda.get_device_capability(weight.device) >= (8, 0)
    return "tf32" if is_new else "ieee"
