"""Sizes of gradients: what makes the rule free of the loss's scale,
and lets it survive bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log2, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]

from ngopt.base.arrays import Column, are_on_host, at_least, at_most, on, where

# Decay of the running size of a gradient.
SIZE_DECAY = 0.95
# Gradients in the beginning whose size is judged by the next: before,
# there is none to compare with.
EARLY = 3
# Numbers of a gradient whose norm is found at once: in float64, of which torch makes a copy.
CHUNK = 1 << 18
# Below this a running size is none: mean squares of float32 end there.
TINY = 1e-30
# Relative size that gradients do not reach; finite, so that its derivatives are numbers.
NO_LIMIT = 1e18
# Between these, sums of squares are as good in float32.
PLAIN = 1e-20, 1e20


class Measured(NamedTuple):
    """Of a gradient, or of all (n,).

    active: 1, or 0 where the gradient is not finite, and the step is left out.
    multiplier: brings the gradient to its scale, and cuts it where it is out of all proportion; 0
        where it is not finite.
    recall: brings what the state holds of the first gradients to what they would be in proportion.
    scale: size of the first gradient that was not zero, a power of two; 0 before.
    size: running mean square of the gradient in that scale, without correction of its beginning.
    mean_square: the same with it.
    """

    active: Any
    multiplier: Any
    recall: Any
    scale: Any
    size: Any
    mean_square: Any


def measure(
    rms: Any, scale: Any, size: Any, early: Any, kept: Any, clip: float
) -> Measured:
    """Measures a gradient, or all together, without a word to the host.

    rms: root mean square of the gradient. scale, size: from before; 0 at first. early, kept: see
    `sizes_at`. clip: a gradient may be this many times as large as its running size; and the first
    ones as many times as large as the next.
    """
    is_active = rms < inf
    active = 1.0 * is_active
    rms = where(is_active, rms, 0.0)
    scale = _first_size(scale, rms)
    inverse = (scale > 0) / (scale + (scale == 0))
    relative = rms * inverse

    mean = size / at_least(1 - kept, TINY)
    usual = at_least(mean, TINY) ** 0.5
    limit = where(mean > TINY, clip * usual, NO_LIMIT)
    cut = at_most(limit / at_least(relative, 1 / NO_LIMIT), 1.0)
    is_early = (early > 0) & (relative > 0) & (mean > TINY)
    recall = where(is_early, at_most(clip * relative / usual, 1.0), 1.0)
    size = size * recall**2
    size = size + (1 - SIZE_DECAY) * active * ((relative * cut) ** 2 - size)
    mean = size / (1 - SIZE_DECAY * kept)
    return Measured(active, inverse * cut * active, recall, scale, size, mean)


def sizes_at(step: Any) -> tuple[Any, Any]:
    """Of `measure`: whether a parameter's step is early,
    and what weights of running sizes have come to."""
    is_early = (step > 0) & (step <= EARLY)
    return 1.0 * is_early, SIZE_DECAY**step


def is_recalled(recall: Column, steps: Any) -> bool:
    """Whether any recall is other than 1; may be, where looking would take a wait."""
    if isinstance(recall, Tensor):
        return any(0 < step <= EARLY for step in steps)
    return any(value != 1 for value in recall)


def _first_size(scale: Any, rms: Any) -> Any:
    """The scale, or where it is 0 the power of two nearest to a gradient's size; 0 for 0.

    A constant to autograd, and a number that float32 has.
    """
    if not isinstance(rms, Tensor):
        return scale or (
            2.0 ** round(log2(min(max(rms, 1e-37), 1e38))) if rms else 0.0
        )
    rms = rms.detach()
    nearest = rms.clamp(1e-37, 1e38).log2().round().exp2() * rms.sign()
    return torch.where(scale > 0, scale, nearest)


def root_mean_squares(values: Sequence[Tensor]) -> Column:
    """Of each tensor; all of them on the device of the first."""
    sizes = [max(x.numel(), 1) for x in values]
    if are_on_host(values):
        return [
            sqrt(_square_sum(x, size) / size)
            for x, size in zip(values, sizes, strict=True)
        ]
    device = values[0].device
    # squares of float32 end at 1e38; float64 holds those of all float32
    dtype = torch.float32 if device.type == "mps" else torch.float64
    whole = [
        x if size <= CHUNK else _norms(x, dtype)
        for x, size in zip(values, sizes, strict=True)
    ]
    norms = torch.stack(
        [on(norm, device) for norm in _foreach_norm(whole, 2, dtype)]
    )
    return norms / norms.new_tensor(sizes).sqrt()


def _square_sum(values: Tensor, size: int) -> float:
    """In float32 at least, and in float64 where that has not the range."""
    flat, found = values.reshape(-1), 0.0
    for piece in flat.split(CHUNK) if size > CHUNK else (flat,):
        own = piece if piece.itemsize >= 4 else piece.float()
        found += torch.dot(own, own).item()
    if PLAIN[0] < found < PLAIN[1]:
        return found
    return _norms(values, torch.float64).square().sum().item()


def _norms(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms of the pieces of a long tensor."""
    pieces = values.reshape(-1).split(CHUNK)
    return torch.stack(_foreach_norm(pieces, 2, dtype))
