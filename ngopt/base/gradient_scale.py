"""RMS of gradients: makes the rule free of the loss' scale and robust to bad ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DECAY = 0.95  # of the running mean square of a gradient
EARLY = 3  # first gradients, which are judged by the next: before, there is no other
SAFE = 2.0**16  # between the state's unit and the running RMS
LEAST, GREATEST = 2.0**-126, 2.0**126  # units that are float32, as are their inverses


class GradientScale(NamedTuple):
    """Of every parameter, (n,)."""

    active: Tensor  # 1 where the gradient is finite, so that the step is made, else 0
    multiplier: Tensor  # of the gradient: into units, clipped; 0 where not active
    rescale: Tensor  # of the state, into the present unit; takes early outliers back
    scale: Tensor  # the unit, a power of two near the RMS of the first gradient
    rms: Tensor  # running, without correction of its beginning
    relative: Tensor  # the same with it, in units


def gradient_scale(
    rms: Tensor,
    scale: Tensor,
    running: Tensor,
    corrections: tuple[Tensor, Tensor],
    clip: float,
    is_early: Tensor | None,
) -> GradientScale:
    """The scale of one gradient of every parameter.

    rms: of the gradients. scale, running: from the step before, 0 at first.
    corrections: of the running RMS, before this step and after it. clip: how many times
    the running RMS a gradient may be, and an early one the next. is_early: of which
    parameters the last gradient was early; None: of none.
    """
    is_finite = rms < torch.inf
    rms = rms.nan_to_num(0.0, 0.0, 0.0)
    usual = running * corrections[0]
    ratio = rms / usual.masked_fill(usual == 0, torch.inf)
    cut = clip / ratio.clip(min=clip)
    rescale = scale
    if is_early is not None:
        recall = (clip * ratio).clip(max=1.0).where(is_early & (ratio > 0), 1.0)
        running, rescale = running * recall, rescale * recall
    moved = torch.stack((running * DECAY**0.5, rms * cut * (1 - DECAY) ** 0.5))
    running = torch.where(is_finite, moved.norm(dim=0), running)  # derivative 0 at 0

    corrected = running * corrections[1]
    level = corrected.detach()
    drift = level / scale
    is_near = drift == drift.clip(1 / SAFE, SAFE)
    nearest = level.clip(LEAST, GREATEST).log2().round().exp2()
    unit = torch.where(is_near, scale, nearest)
    return GradientScale(
        active=is_finite.to(rms.dtype),
        multiplier=cut * is_finite / unit,
        rescale=rescale / unit,
        scale=unit,
        rms=running,
        relative=corrected / unit,
    )
