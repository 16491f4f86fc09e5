"""Scalars of a step: gradient scale, step size and weight decay of every parameter.

On a CPU the arrays are NumPy's, as calls of NumPy have less overhead on few numbers.
Elsewhere they are tensors on the device.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ngopt import devices
from ngopt.devices import Array, Pair
from ngopt.roles.buckets import is_measured
from ngopt.soap.config import Measured, Network, SoapConfig
from ngopt.soap.elementwise import StepScalars
from ngopt.soap.first_steps import OBSERVED_STEPS, FirstSteps
from ngopt.soap.schedule import DECAY, ScheduledValues, short_run_multiplier
from ngopt.soap.state import PRODUCTS, ScalarState

LEAST_SIZE = 0.0625  # of offset + slope * RMS(weights), see `of_step`
COMPARED_STEPS = 3  # number of first gradients that are compared with the next one
REMEMBERED = 0.8  # share of the products of gradients and directions, per step
# Two standard deviations of a sum, with this memory, of random signs: of the cosine of
# independent tensors with one element.
COSINE_NOISE = 2 * ((1 - REMEMBERED) / (1 + REMEMBERED)) ** 0.5
UNIT_RANGE = 2.0**16  # largest ratio between the running RMS and its unit
BIAS_SHARE = 0.2  # of the RMS of its matrix, see `gradient_scale`
MIN_UNIT, MAX_UNIT = 2.0**-126, 2.0**126  # float32, as are the inverses


class FactorScalars(NamedTuple):
    """Scalars of a step, per parameter (n,) or per Kronecker factor (count, 1, 1)."""

    decay: Array  # of the factor
    active: Array  # 1 where the step is made, 0 where it is skipped
    count: Array  # gradients so far, including this one


class ScalarEquations:
    """Computes the scalars of a step of a network's parameters.

    bias_matrices: `Network.bias_matrices`, (n,), on the device.
    """

    def __init__(self, network: Network, config: SoapConfig):
        self._config = config
        self.first_steps = FirstSteps(network, config)
        self.bias_matrices = torch.tensor(network.bias_matrices, device=network.device)
        # of matrices, and of biases by their matrix: whether entries are measured
        matrices = [network.layouts[i] for i in network.bias_matrices]
        is_restrained = torch.tensor(
            [is_measured(layouts) for layouts in matrices], device=network.device
        )
        numels = self.first_steps.numels
        of_layers = torch.zeros_like(numels).index_add(0, self.bias_matrices, numels)
        undone = config.undone + COSINE_NOISE * of_layers[self.bias_matrices] ** -0.5
        undone = torch.where(is_restrained, undone, torch.inf)
        constants = self.bias_matrices, undone, numels * 0
        self._constants: dict[Any, Sequence[Array]] = {torch: constants}
        if network.like.is_cpu:
            self._constants[np] = [x.numpy() for x in constants]
        self._short = short_run_multiplier(config, network.total_steps)
        # largest squared distance in that of a random walk that has an effect
        self._max_ratio = config.path_ratio_limit ** (2 / config.path_ratio_exponent)

    @np.errstate(all="ignore")
    def of_step(
        self,
        measured: Measured,
        scheduled: ScheduledValues,
        rows: Array,
        multiplier: Array | None,
        youngest: float,
    ) -> tuple[ScalarState, StepScalars, FactorScalars]:
        """The state after the step, and scalars of parameters and factors.

        The step size is a scheduled value times factors, most of which are 1.

        Args:
            measured, scheduled: arrays or tensors (n,).
            rows: `ScalarState`, (fields, n).
            multiplier: of step sizes and weight decays, (n,); None: 1.
            youngest: the least number of previous gradients of a parameter.
        """
        c = self._config
        xp: Any = np if isinstance(measured.grad_rms, np.ndarray) else torch
        bias_matrices, undone, zeros = self._constants[xp]
        state = ScalarState(*rows)
        is_early = None
        if youngest <= COMPARED_STEPS:
            count = scheduled.count
            is_early = (count > 1) & (count <= COMPARED_STEPS + 1)
        g = gradient_scale(
            measured.grad_rms,
            state.scale,
            state.rms,
            corrections=(scheduled.rms_correction_before, scheduled.rms_correction),
            clip=c.clip,
            is_early=is_early,
            bias_matrices=bias_matrices,
        )
        if youngest < OBSERVED_STEPS:
            state = self.first_steps.update(measured, scheduled, state)
        state = restrained(state, rows[PRODUCTS], g.corrected, bias_matrices, undone, c)
        new_state = state._replace(
            scale=g.scale,
            rms=g.rms,
            skipped=state.skipped + ~g.active,
            distance=zeros,  # this step adds to it
        )

        rms = measured.weight_rms
        # weights whose scale has no effect may grow
        limit = xp.maximum(scheduled.largest_size, c.largest_size * state.invariant)
        size = state.offset + xp.minimum(state.slope * rms, limit)
        size = size.clip(LEAST_SIZE, c.largest_size)
        size = xp.maximum(size, size**0.5)  # of small weights
        if c.weight_exponent != 1:
            size = size**c.weight_exponent
        size = size * state.restraint
        decay = scheduled.weight_decay * state.restraint * g.active
        if multiplier is not None:
            size = size * multiplier
            decay = decay * multiplier
        if self._short > 1:
            longer = self._short**state.untrained
            size = size * longer
            decay = decay * longer
        ratio = state.distance / (state.path * scheduled.random_walk)
        straight = ratio.clip(1.0, self._max_ratio)
        size = size * straight ** (c.path_ratio_exponent / 2)

        square = g.rescale * g.rescale
        of_parameters = StepScalars(
            grad_scale=g.multiplier,
            momentum_decay=xp.where(g.active, c.beta1 * g.rescale, g.rescale),
            second_moment_decay=xp.where(g.active, scheduled.beta2 * square, square),
            second_moment_correction=scheduled.second_moment_correction,
            damping=g.relative**2 * scheduled.damping,
            step_size=scheduled.step_size * size * g.active,
            weight_decay=decay,
        )
        factor_decay = xp.where(g.active, c.beta_factor * square, square)
        of_factors = FactorScalars(factor_decay, g.active, scheduled.count)
        return new_state, of_parameters, of_factors


def restrained(
    state: ScalarState,
    products: Array,
    rms: Array,
    bias_matrices: Array,
    undone: Array,
    config: SoapConfig,
) -> ScalarState:
    """The state with shorter steps where steps undo each other.

    c is the cosine of the gradient g and the momentum m before it, both divided by the
    root of second moments in the eigenbasis. Noise has c near 0. Steps that are too
    long for a valley turn back: c < 0 (Pflug 1983). Gradients of the batches of a short
    epoch have c < 0, too, as they add up to 0 near a minimum, but their RMS does not
    fall. So the factor is at least the running RMS of the gradient divided by its
    largest value. It rises with the gradient, as on other data.

    The direction u = m + share g contains g. Its inner products are summed over steps;
    those of a matrix contain its bias.

    Args:
        products: rows `PRODUCTS` of the state, (3, n).
        rms: running, of gradients, bias-corrected, (n,).
        bias_matrices: index of the matrix of each bias; of other parameters their own.
        undone: -c up to which steps keep their length, (n,).
    """
    xp: Any = np if isinstance(undone, np.ndarray) else torch
    gg, gu, uu = products[:, bias_matrices]
    s = 1 - config.beta1
    share = s + (s - s * s) * config.nesterov
    gm = gu - share * gg
    squares = gg * (uu - 2 * share * gm - share * share * gg)
    cosine = gm * xp.where(squares > 0, squares, xp.inf) ** -0.5
    excess = (-cosine - undone).clip(min=0.0)
    rate = config.undone_rate / (1 - config.undone)
    largest = xp.maximum(state.largest, rms)
    least = rms / xp.where(largest > 0, largest, 1.0)
    shorter = state.restraint * xp.exp(-rate * excess)
    gradient_square, product, direction_square = products * REMEMBERED
    return state._replace(
        largest=largest,
        restraint=xp.maximum(shorter, least[bias_matrices]),
        gradient_square=gradient_square,
        product=product,
        direction_square=direction_square,
    )


class GradientScale(NamedTuple):
    """Of every parameter, (n,), arrays or tensors."""

    active: Array  # bool: the gradient is finite; else the step is skipped
    multiplier: Array  # factor of the gradient: clipping / unit; 0 if not active
    rescale: Array  # factor of the state: old unit / new unit, and early outliers
    scale: Array  # the unit, a power of two near the RMS of the first gradient
    rms: Array  # running, without bias correction
    corrected: Array  # running, with it
    relative: Array  # running RMS in units, > 0; biases: see `gradient_scale`


def gradient_scale(
    rms: Array,
    scale: Array,
    running: Array,
    corrections: Pair,
    clip: float,
    is_early: Array | None,
    bias_matrices: Array,
) -> GradientScale:
    """The unit of a gradient, clipping of outliers, and steps that are skipped; (n,).

    The running RMS of a bias is at least `BIAS_SHARE` times that of its matrix. If a
    norm or a softmax cancels a bias, its gradient is rounding noise, which this damps.

    Args:
        rms: of the gradients.
        scale, running: unit and running RMS of the previous step, 0 at first.
        corrections: bias corrections of the running RMS before and after this step.
        clip: largest RMS of a gradient in units of the running RMS. If an early
            gradient exceeds the next one by more, the state is scaled down.
        is_early: parameters whose previous gradient was early; None: no parameter.
        bias_matrices: index of the matrix of each bias; of other parameters their own.
    """
    xp: Any = np if isinstance(rms, np.ndarray) else torch
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
    updated = devices.hypot(running * DECAY**0.5, newest)
    running = xp.where(is_finite, updated, running)

    corrected = running * corrections[1]
    drift = corrected / scale
    is_near = drift == drift.clip(1 / UNIT_RANGE, UNIT_RANGE)
    positive = corrected.clip(MIN_UNIT, MAX_UNIT)
    nearest = xp.exp2(xp.log2(positive).round())
    unit = xp.where(is_near, scale, nearest)
    of_matrices = BIAS_SHARE * positive[bias_matrices]
    return GradientScale(
        active=is_finite,
        multiplier=clipping * is_finite / unit,
        rescale=rescale / unit,
        scale=unit,
        rms=running,
        corrected=corrected,
        relative=xp.maximum(positive, of_matrices) / unit,
    )
