"""Scalars of a step: gradient scale, step size and weight decay of every parameter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ngopt import devices
from ngopt.base.elementwise import StepScalars
from ngopt.base.first_steps import FirstSteps, StepSizeFactors
from ngopt.base.gradient_clipping import COMPARED_STEPS, GradientScale, gradient_scale
from ngopt.base.state import ParameterStack
from ngopt.base.step_context import FactorScalars, StepContext
from ngopt.base.step_predictor import NetworkFactors
from ngopt.base.step_size import lengthening
from ngopt.devices import Array, Pair

if TYPE_CHECKING:
    from ngopt.base.soap import SoapRule

WEIGHT_SCALES = 0.0625, 10.0  # range of the step size's factor by RMS of the weights


class ScalarEquations:
    """Computes `StepScalars` and `FactorScalars`, and updates the scalars of the state.

    On a CPU the arrays are NumPy's, elsewhere tensors on the device.

    numels: numbers of elements, (n,). roots: of those of gradients and of weights,
    (2n,).
    """

    def __init__(
        self, rule: "SoapRule", positions: Sequence[int], stack: ParameterStack
    ):
        """positions: indices of n parameters among those of the rule."""
        self._config = rule.config
        self._dtype = stack.dtype
        self._count = len(positions)
        device = stack.device
        places = dict(zip(positions, range(self._count), strict=True))
        numels, tables, matrices = [], [], []
        for place, i in enumerate(positions):
            numels.append(max(rule.graph.parameters[i].numel, 1))
            matrices.append(places.get(rule.matrices[i], place))
            if rule.roles[i].role == "embedding":
                tables.append(place)
        self.numel = sum(numels)
        dtype = devices.precise_dtype(device)
        self.numels = torch.tensor(numels, dtype=dtype, device=device)
        both = torch.tensor(numels * 2, dtype=dtype, device=device)
        self.roots = both.sqrt()
        self._zeros = self.roots.new_zeros(self._count)
        # index of the matrix of each bias, if it is among these parameters
        self._matrices = torch.tensor(matrices, device=device)
        network = None
        total_steps = rule.total_steps
        if rule.predictor is not None and total_steps is not None:
            network = NetworkFactors(rule, positions, device)
        self._has_factor = network is not None
        self._first = FirstSteps(rule.config, tables, numels, self.numels, network)
        self._lengthening = lengthening(rule.config, total_steps)
        # largest squared distance in that of a random walk that has an effect
        c = rule.config
        self._most = c.straight_most ** (2 / c.straight_exponent)

    @np.errstate(all="ignore")
    def of_step(self, step: StepContext) -> tuple[Tensor, Tensor]:
        """`StepScalars` and `FactorScalars` of all parameters, (fields, n) each."""
        n = self._count
        scheduled = step.scheduled
        rms = step.root_mean_squares(self.roots)
        scales = step.state.scales.to(rms.dtype, copy=True)  # updated below
        if step.on_host:
            rms = rms.numpy()
            scales = scales.numpy()
        grad_rms = rms[:n]
        weight_rms = rms[n:]
        unit, running, skipped, *factors, path, distance = scales
        g = self._gradient_scale(step, grad_rms, (unit, running))
        factors = StepSizeFactors(*factors)
        both = grad_rms, weight_rms
        factors = self._first.update(factors, step, both, (running, unit))
        zero = 0.0 if step.on_host else self._zeros  # `_update_distance` adds to it
        new = g.scale, g.rms, skipped + ~g.active, *factors, path, zero
        new_scales = devices.stacked(new, n, self.roots.dtype)
        step.state.scales.copy_(new_scales)

        ratio = distance / (path * scheduled.random_walk)
        size = self._weight_scale(factors, weight_rms)
        decay = scheduled.weight_decay * g.active
        if self._has_factor:
            size = size * factors.predicted
            decay = decay * factors.predicted
        if self._lengthening > 1:
            longer = self._lengthening**factors.untrained
            size = size * longer
            decay = decay * longer
        straight = ratio.clip(1.0, self._most)
        size = size * straight ** (self._config.straight_exponent / 2)

        xp = devices.array_module(rms)
        c = self._config
        square = g.rescale * g.rescale
        factor_decay = xp.where(g.active, c.beta_factor * square, square)
        momentum_decay = xp.where(g.active, c.beta1 * g.rescale, g.rescale)
        second_decay = xp.where(g.active, scheduled.beta2 * square, square)
        of_rows = StepScalars(
            grad_scale=g.multiplier,
            momentum_decay=momentum_decay,
            second_moment_decay=second_decay,
            second_moment_correction=scheduled.second_moment_correction,
            damping=g.relative**2 * scheduled.damping,
            step_size=scheduled.step_size * size * g.active,
            weight_decay=decay,
        )
        of_factors = FactorScalars(factor_decay, g.active, scheduled.count)
        scalars = devices.stacked(of_rows + of_factors, n, self._dtype)
        return scalars[: len(of_rows)], scalars[len(of_rows) :]

    def _gradient_scale(
        self, step: StepContext, rms: Array, before: Pair
    ) -> GradientScale:
        """rms: of gradients. before: unit and running RMS of the previous step."""
        s = step.scheduled
        is_early = None
        if step.youngest <= COMPARED_STEPS:
            is_early = (s.count > 1) & (s.count <= COMPARED_STEPS + 1)
        matrices = self._matrices.numpy() if step.on_host else self._matrices
        corrections = s.rms_correction_before, s.rms_correction
        clip = self._config.clip
        return gradient_scale(rms, *before, corrections, clip, is_early, matrices)

    def _weight_scale(self, factors: StepSizeFactors, rms: Array) -> Array:
        """The factor of step sizes by the RMS of weights, (n,)."""
        size = devices.add_product(factors.offset, rms, factors.slope)
        size = size.clip(*WEIGHT_SCALES)
        size = devices.array_module(rms).maximum(size, size**0.5)  # of small weights
        exponent = self._config.weight_exponent
        return size if exponent == 1 else size**exponent
