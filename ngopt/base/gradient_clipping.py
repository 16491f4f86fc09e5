"""Bad gradients: unit of the loss, clipping of outliers, steps that are skipped."""

from typing import NamedTuple

import torch

from ngopt.devices import Array, Pair, array_module, hypot

DECAY = 0.95  # of the running mean square of a gradient
COMPARED_STEPS = 3  # number of first gradients that are compared with the next one
UNIT_RANGE = 2.0**16  # largest ratio between the running RMS and its unit
BIAS_SHARE = 0.2  # of the RMS of its matrix, see `gradient_scale`
MIN_UNIT, MAX_UNIT = 2.0**-126, 2.0**126  # float32, as are the inverses


class GradientScale(NamedTuple):
    """Of every parameter, (n,), arrays or tensors."""

    active: Array  # bool: the gradient is finite; else the step is skipped
    multiplier: Array  # factor of the gradient: clipping / unit; 0 if not active
    rescale: Array  # factor of the state: old unit / new unit, and early outliers
    scale: Array  # the unit, a power of two near the RMS of the first gradient
    rms: Array  # running, without bias correction
    relative: Array  # running RMS in units, > 0; biases: see `gradient_scale`


def gradient_scale(
    rms: Array,
    scale: Array,
    running: Array,
    corrections: Pair,
    clip: float,
    is_early: Array | None,
    matrices: Array,
) -> GradientScale:
    """The scale of one gradient of every parameter; all arrays are (n,).

    The running RMS of a bias is at least `BIAS_SHARE` times that of its matrix. If a
    norm or a softmax cancels a bias, its gradient is rounding noise, which this damps.

    Args:
        rms: of the gradients.
        scale, running: unit and running RMS of the previous step, 0 at first.
        corrections: bias corrections of the running RMS before and after this step.
        clip: largest RMS of a gradient in units of the running RMS. If an early
            gradient exceeds the next one by more, the state is scaled down.
        is_early: parameters whose previous gradient was early; None: no parameter.
        matrices: index of the matrix of each bias; of other parameters their own.
    """
    xp = array_module(rms)
    is_finite = rms < torch.inf
    rms = xp.where(is_finite, rms, 0.0)
    expected = running * corrections[0]
    ratio = rms / xp.where(expected == 0, torch.inf, expected)
    clipping = clip / ratio.clip(min=clip)
    rescale = scale
    if is_early is not None:
        is_outlier = is_early & (ratio > 0)
        shrink = xp.where(is_outlier, (clip * ratio).clip(max=1.0), 1.0)
        running, rescale = running * shrink, rescale * shrink
    newest = rms * clipping * (1 - DECAY) ** 0.5
    running = xp.where(is_finite, hypot(running * DECAY**0.5, newest), running)

    corrected = running * corrections[1]
    drift = corrected / scale
    is_near = drift == drift.clip(1 / UNIT_RANGE, UNIT_RANGE)
    positive = corrected.clip(MIN_UNIT, MAX_UNIT)
    nearest = xp.exp2(xp.log2(positive).round())
    unit = xp.where(is_near, scale, nearest)
    of_matrices = BIAS_SHARE * positive[matrices]
    return GradientScale(
        active=is_finite,
        multiplier=clipping * is_finite / unit,
        rescale=rescale / unit,
        scale=unit,
        rms=running,
        relative=xp.maximum(positive, of_matrices) / unit,
    )
