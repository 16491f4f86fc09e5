"""The length of steps, from initial weights, first gradients and the distance moved.

Initial weights. The first steps have the same size whatever the scale of the initial
weights. If these are smaller than PyTorch's, the size is the root of their ratio. Later
steps grow with the weights.

Trained weights. No singular value of a random matrix (m, n) is above RMS (sqrt m +
sqrt n); those of trained matrices are (Martin and Mahoney 2021). A trained network is
near a minimum, so its steps are shorter; unless its first gradients agree, as those for
other data do: near a minimum they are noise.

Tables. Rare rows of an embedding table receive few gradients, so steps are longer. The
first gradients give the share of rows in a batch.

Distance. After t steps in random directions, the distance from the initial value is
about 4.4 (t / (t + 20))^.5 times the root of the summed squares of the steps; after t
steps in one direction, t^.5 times. If it is larger than the first, the parameter has
far to go, as a scale that begins at zero, and steps are longer. Only parameters with
few elements are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ngopt.base.config import SoapConfig
from ngopt.devices import Array, array_module, precise_dtype

if TYPE_CHECKING:
    from ngopt.base.step_context import StepContext
    from ngopt.base.step_size import ScheduledValues

OBSERVED = 8  # first gradients, in which tables and agreement are looked at
AGREED = 0.95  # agreement, at most
ITERATIONS = 6  # of a power iteration
EDGE = 1.02  # of random matrices, a little beyond sqrt(m) + sqrt(n)
DENSITY = 1e-3  # the least share of a table's rows that counts
TINY = 1e-30


class StepSizeFactors(NamedTuple):
    """What step sizes depend on, of every parameter, (n,): rows of the state."""

    offset: Array  # the step size goes with `offset + slope * RMS(weights)`
    slope: Array
    untrained: Array  # how much of the network is not trained, or far from a minimum
    share: Array  # of the step size, of trained weights
    agreement: Array  # of gradients
    density: Array  # mean share of elements with a gradient


class FirstSteps:
    """Updates `StepSizeFactors` in the first steps."""

    def __init__(
        self,
        config: SoapConfig,
        tables: Sequence[int],
        numels: Sequence[int],
        device: torch.device,
    ):
        """tables: which parameters are. numels: elements of all parameters."""
        self.config, self._tables, self._numels = config, tables, numels
        dtype = precise_dtype(device)
        self._numel = torch.tensor(numels, dtype=dtype, device=device)

    def updated(
        self,
        start: StepSizeFactors,
        step: StepContext,
        known: ScheduledValues,
        rms: Array,
        gradients: tuple[Array, Array],
    ) -> StepSizeFactors:
        """rms: of weights. gradients: their running RMS before this step, and unit."""
        if step.youngest == 0:
            start = self._initial(start, step, known, rms)
        if 2 <= step.youngest < OBSERVED:
            running, unit = map(_constant, gradients)
            start = self._with_agreement(
                start, step, known, running * known.before / unit
            )
        if self._tables and step.youngest < OBSERVED:
            start = self._with_density(start, step, known)
        return start

    def _initial(
        self,
        start: StepSizeFactors,
        step: StepContext,
        known: ScheduledValues,
        rms: Array,
    ) -> StepSizeFactors:
        found = trained(step.excesses(), self._numels, self._numel, self.config)
        share, untrained = (_like(rms, x) for x in found)
        offset, slope = initial_size(rms, known.per_rms)
        square = share**2  # step sizes go with the root
        new = StepSizeFactors(
            offset=offset * square,
            slope=slope * square,
            untrained=untrained,
            share=share,
            agreement=0.0 * share,
            density=start.density,
        )
        xp = array_module(rms)
        is_first = xp.ones_like(rms) * known.count == 1
        return StepSizeFactors(
            *[xp.where(is_first, *x) for x in zip(new, start, strict=True)]
        )

    def _with_agreement(
        self,
        start: StepSizeFactors,
        step: StepContext,
        known: ScheduledValues,
        usual: Array,
    ) -> StepSizeFactors:
        xp = array_module(usual)
        age = xp.ones_like(usual) * known.count - 1
        # of those that are in their first steps, each in its own unit
        is_measured = (age >= 2) & (age < OBSERVED) & (usual > 0)
        squares = _like(usual, step.momentum_squares())
        squares = xp.where(
            is_measured, squares / xp.where(is_measured, usual, 1.0) ** 2, 0.0
        )
        numel = is_measured * _like(usual, self._numel)
        new = agreement(squares, numel, age, self.config.beta1)
        new = xp.where(is_measured, new, start.agreement)
        released = start.share ** (2 * (start.agreement - new))
        untrained = 1 - (1 - start.untrained) * (1 - new) / (1 - start.agreement)
        offset, slope = start.offset * released, start.slope * released
        return start._replace(
            offset=offset, slope=slope, untrained=untrained, agreement=new
        )

    def _with_density(
        self, start: StepSizeFactors, step: StepContext, known: ScheduledValues
    ) -> StepSizeFactors:
        """By the density of tables that are in their first steps."""
        xp = array_module(start.density)
        share = _like(start.density, step.dense_shares(self._tables))
        growth, density = mean_density(share, start.density, known.count)
        longer = growth**-self.config.rare_exponent
        is_early = xp.ones_like(density) * known.count <= OBSERVED
        longer = xp.where(is_early, longer, 1.0)
        density = xp.where(is_early, density, start.density)
        offset, slope = start.offset * longer, start.slope * longer
        return start._replace(offset=offset, slope=slope, density=density)


def _constant(x: Array) -> Array:
    """The same to autograd."""
    return x.detach() if isinstance(x, Tensor) else x


def _like(array: Array, values: Tensor) -> Array:
    """NumPy's, if the array is."""
    return array_module(array).asarray(values)


def agreement(squares: Array, expected: Array, age: Array, beta1: float) -> Array:
    """How much the first gradients of a network agree, 0 to 1, ().

    squares: of their momentum, (n,). expected: the square of one gradient. age: how
    many there were. The square of a momentum sum(w g) is that of one gradient times
    sum(w^2) if gradients are independent, and times sum(w)^2 if they are equal.
    """
    total = 1 - beta1**age
    noise = (1 - beta1) / (1 + beta1) * (1 - beta1 ** (2 * age))
    most = ((total**2 - noise) * expected).sum()
    found = (squares - noise * expected).sum() / most.clip(TINY)
    return found.clip(0.0, AGREED)


def spectral_excess(weight: Tensor) -> Tensor:
    """log of the largest singular value, in that of random matrices with its RMS, ().

    weight: (m, ...); an estimate from below, the same if neurons change places.
    """
    w = weight.detach().reshape(len(weight), -1)
    w = w.to(torch.float64 if w.dtype == torch.float64 else torch.float32)
    w = w / w.abs().amax().clip(min=TINY)
    v = w.sum(1)
    for _ in range(ITERATIONS):
        v = w @ (w.mT @ (v / v.norm().clip(min=TINY)))
    v = v / v.norm().clip(min=TINY)
    largest = (w.mT @ v).norm()
    edge = w.square().mean().sqrt() * sum(size**0.5 for size in w.shape)
    excess = (largest / (EDGE * edge).clip(min=TINY)).clip(min=1.0).log()
    return excess.nan_to_num(0.0, 0.0)  # of weights that are not finite


def is_matrix(p: Tensor) -> bool:
    """Whether it has singular values."""
    return p.dim() > 1 and p.numel() > 0


def trained(
    excesses: Mapping[int, Tensor],
    numels: Sequence[int],
    like: Tensor,
    config: SoapConfig,
) -> tuple[Tensor, Tensor]:
    """(n,) each: shares of the step size, and how untrained the network is, 0 to 1.

    Vectors follow the mean of the matrices, and all matrices a share of it.

    excesses: `spectral_excess` of all matrices. numels: of all parameters. like: has
    the dtype and device of the result.
    """
    c = config
    excess = {i: x.to(like.dtype) for i, x in excesses.items()}
    total = sum(numels[i] for i in excess)
    mean = like.new_zeros(())
    for i in excess:
        mean = mean + excess[i] * (numels[i] / total)
    own = torch.stack([excess.get(i, mean) for i in range(len(numels))])
    own = own.maximum(c.trained_shared * mean)
    share = (-c.trained_exponent * own).exp().clip(min=c.trained_least)
    return share, (1 - mean / c.trained_mean).clip(min=0.0).expand(len(numels))


def initial_size(rms: Array, per_rms: Array) -> tuple[Array, Array]:
    """(offset, slope) of what step sizes follow, offset + slope * RMS(weights).

    rms: of the initial weights. per_rms: 1 / RMS of PyTorch's, 0 for vectors. The first
    value is the ratio of the two, at most 1; of zeros and vectors it is 1.
    """
    first = per_rms * rms
    return (first == 0) + 0.0 * first, per_rms / first.clip(1.0)


def dense_shares(grads: Sequence[Tensor], tables: Sequence[int]) -> Tensor:
    """(n,): the share of elements of a table's gradient that are not 0; else 1."""
    dtype = precise_dtype(grads[0].device)
    found = [grads[0].new_ones((), dtype=dtype)] * len(grads)
    for i in tables:
        found[i] = (grads[i] != 0).to(dtype).mean()
    return torch.stack(found)


def mean_density(share: Array, density: Array, count: Array) -> tuple[Array, Array]:
    """The ratio of the new mean density of tables to the old, and the new one, (n,).

    share: of this gradient. density: the mean before, 0 at first. count: of gradients,
    this one included.
    """
    xp = array_module(share)
    is_first = density == 0
    new = xp.where(is_first, share, density + (share - density) / count)
    old = xp.where(is_first, xp.ones_like(density), density)
    return new.clip(DENSITY) / old.clip(DENSITY), new
