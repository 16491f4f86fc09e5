"""Sizes of gradients: what makes the rule free of the loss's scale, and lets it survive bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]

from ngopt.base.arrays import Array, array, array_like, at_least, at_most, namespace, on

# Decay of the running size of a gradient.
SIZE_DECAY = 0.95
# Gradients in the beginning whose size is judged by the next: before, there is none to compare with.
EARLY = 3
# Numbers of a gradient whose norm is found at once: in float64, of which torch makes a copy.
CHUNK = 1 << 18
# Below this a running size is none: mean squares of float32 end there.
TINY = 1e-30
# Relative size that gradients do not reach; finite, so that its derivatives are numbers.
NO_LIMIT = 1e18


class Measured(NamedTuple):
    """Of each gradient, (n,).

    active: 1, or 0 where the gradient is not finite, and the step is left out.
    multiplier: brings the gradient to its scale, and cuts it where it is out of all proportion; 0
        where it is not finite.
    recall: brings what the state holds of the first gradients to what they would be in proportion.
    scale: size of the first gradient that was not zero, a power of two; 0 before.
    size: running mean square of the gradient in that scale, without correction of its beginning.
    mean_square: the same with it.
    """

    active: Array
    multiplier: Array
    recall: Array
    scale: Array
    size: Array
    mean_square: Array


def measure(rms: Array, scale: Array, size: Array, steps: Sequence[int], clip: float) -> Measured:
    """Measures all gradients together, without a word to the host.

    rms: root mean squares of the gradients. scale, size: from before; 0 at first. steps: gradients
    before this one. clip: a gradient may be this many times as large as its running size; and the
    first ones as many times as large as the next.
    """
    xp = namespace(rms)
    quiet = nullcontext() if xp is torch else np.errstate(all="ignore")
    with quiet:
        is_active = rms < inf
        one = xp.ones_like(rms)
        active = one * is_active
        rms = xp.where(is_active, rms, 0.0)
        is_known = scale > 0
        if not (xp is np and is_known.all()):
            scale = xp.where(is_known, scale, _power_of_two(rms))
        inverse = xp.where(scale > 0, 1 / scale, 0.0)
        relative = rms * inverse

        weight = array_like([SIZE_DECAY**step for step in steps], rms)
        mean = size / at_least(1 - weight, TINY)
        usual = xp.sqrt(at_least(mean, TINY))
        limit = xp.where(mean > TINY, clip * usual, NO_LIMIT)
        cut = at_most(limit / at_least(relative, 1 / NO_LIMIT), 1)
        recall = one
        if any(0 < step <= EARLY for step in steps):
            is_early = array_like([step <= EARLY for step in steps], rms) > 0
            is_early = is_early & (relative > 0) & (mean > TINY)
            recall = xp.where(is_early, at_most(clip * relative / usual, 1), one)
            size = size * xp.square(recall)
        size = size + (1 - SIZE_DECAY) * active * (xp.square(relative * cut) - size)
        mean = size / (1 - SIZE_DECAY * weight)
    return Measured(active, inverse * cut * active, recall, scale, size, mean)


def is_recalled(recall: Array, steps: Sequence[int]) -> bool:
    """Whether any recall is other than 1; may be, where looking would take a wait."""
    if isinstance(recall, np.ndarray):
        return bool((recall != 1).any())
    return any(0 < step <= EARLY for step in steps)


def _power_of_two(rms: Array) -> Array:
    """The nearest that float32 has, 0 for 0; a constant to autograd."""
    xp = namespace(rms)
    rms = rms.detach() if isinstance(rms, Tensor) else rms
    return xp.exp2(xp.round(xp.log2(xp.clip(rms, 1e-37, 1e38)))) * xp.sign(rms)


def root_mean_squares(values: Sequence[Tensor]) -> Array:
    """Of each tensor, (n,), on the device of the first."""
    device = values[0].device
    # squares of float32 end at 1e38; float64 holds those of all float32
    dtype = torch.float32 if device.type == "mps" else torch.float64
    sizes = [x.numel() for x in values]
    rows = zip(values, sizes, strict=True)
    whole = [x if size <= CHUNK else _norms(x, dtype) for x, size in rows]
    norms = [on(norm, device) for norm in _foreach_norm(whole, 2, dtype)]
    found = array(torch.stack(norms))
    return found / array_like([sqrt(max(size, 1)) for size in sizes], found)


def _norms(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Norms of the pieces of a long tensor."""
    pieces = values.reshape(-1).split(CHUNK)
    return torch.stack(_foreach_norm(pieces, 2, dtype))
