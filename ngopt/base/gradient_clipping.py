"""RMS of gradients: makes the rule free of the loss' scale and robust to bad ones."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ngopt.devices import Array, array_module, hypot

DECAY = 0.95  # of the running mean square of a gradient
EARLY = 3  # first gradients, which are judged by the next: before, there is no other
SAFE = 2.0**16  # between the state's unit and the running RMS
BIAS_SHARE = 0.2  # of the RMS of its matrix, see `gradient_scale`
LEAST, GREATEST = 2.0**-126, 2.0**126  # units that are float32, as are their inverses


class GradientScale(NamedTuple):
    """Of every parameter, (n,), arrays or tensors."""

    active: Array  # bool: whether the gradient is finite, so that the step is made
    multiplier: Array  # of the gradient: into units, clipped; 0 where not active
    rescale: Array  # of the state, into the present unit; takes early outliers back
    scale: Array  # the unit, a power of two near the RMS of the first gradient
    rms: Array  # running, without correction of its beginning
    relative: Array  # the same with it, in units, above 0; of a bias see `matrices`


def gradient_scale(
    rms: Array,
    scale: Array,
    running: Array,
    corrections: tuple[Array, Array],
    clip: float,
    is_early: Array | None,
    matrices: Array,
) -> GradientScale:
    """The scale of one gradient of every parameter.

    rms: of the gradients. scale, running: from the step before, 0 at first.
    corrections: of the running RMS, before this step and after it. clip: how many times
    the running RMS a gradient may be, and an early one the next. is_early: of which
    parameters the last gradient was early; None: of none. matrices: of every bias the
    number of its matrix, and of others their own. What a norm or a softmax cancels
    leaves a bias nothing but rounding to follow: its damping goes with a share of the
    matrix' RMS, which is less than that of other biases.
    """
    xp = array_module(rms)
    is_finite = rms < torch.inf
    rms = xp.where(is_finite, rms, 0.0)
    usual = running * corrections[0]
    ratio = rms / xp.where(usual == 0, torch.inf, usual)
    cut = clip / ratio.clip(min=clip)
    rescale = scale
    if is_early is not None:
        recall = xp.where(is_early & (ratio > 0), (clip * ratio).clip(max=1.0), 1.0)
        running, rescale = running * recall, rescale * recall
    moved = hypot(running * DECAY**0.5, rms * cut * (1 - DECAY) ** 0.5)
    running = xp.where(is_finite, moved, running)

    corrected = running * corrections[1]
    drift = corrected / scale
    is_near = drift == drift.clip(1 / SAFE, SAFE)
    positive = corrected.clip(LEAST, GREATEST)
    nearest = xp.exp2(xp.log2(positive).round())
    unit = xp.where(is_near, scale, nearest)
    relative = xp.maximum(positive, BIAS_SHARE * positive[matrices]) / unit
    into, rescale = cut * is_finite / unit, rescale / unit
    return GradientScale(is_finite, into, rescale, unit, running, relative)
