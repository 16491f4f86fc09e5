"""Factors of the step size from initial weights and the first gradients.

Initial weights. The first steps have the same size for any scale of the initial weights
at or above PyTorch's. Below, it is proportional to the square root of the ratio. Later
step sizes are proportional to the RMS of the weights.

Trained weights. No singular value of a random matrix (m, n) is above RMS (sqrt m +
sqrt n); those of trained matrices are (Martin and Mahoney 2021). A trained network is
near a minimum, where gradients are noise: its steps are shorter. If the first gradients
agree, as they do for other data, it is far from a minimum: steps have full length.

Tables. Rare rows of an embedding table receive few gradients: steps are longer. The
first gradients give the share of rows in a batch.

Learned factors multiply the step sizes: see `ngopt.base.step_predictor`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ngopt.base.config import SoapConfig
from ngopt.base.network_features import FirstMeasures
from ngopt.base.step_predictor import NetworkFactors
from ngopt.devices import Array, Pair, array_module, precise_dtype

if TYPE_CHECKING:
    from ngopt.base.step_context import StepContext

OBSERVED_STEPS = 8  # in which density and agreement of gradients are measured
MAX_AGREEMENT = 0.95
ITERATIONS = 6  # of a power iteration
# Largest singular value of random matrices, in units of RMS (sqrt m + sqrt n).
RANDOM_EDGE = 1.02
MIN_DENSITY = 1e-3  # share of a table's rows
TINY = 1e-30


class StepSizeFactors(NamedTuple):
    """Of every parameter, (n,): rows of the state."""

    offset: Array  # the step size has the factor `offset + slope * RMS(weights)`
    slope: Array
    untrained: Array  # 0: trained and near a minimum, to 1: random weights
    share: Array  # factor of the step size for trained weights
    agreement: Array  # of the first gradients, 0 to 1
    density: Array  # mean share of elements with a gradient, of tables
    predicted: Array  # learned factor of the step size


@dataclass(frozen=True)
class FirstSteps:
    """Updates `StepSizeFactors` in the first steps.

    tables: indices of embedding tables. numels: elements of all parameters; numel: the
    same on the device, (n,). network: predicts factors of the step sizes; None: 1.
    """

    config: SoapConfig
    tables: Sequence[int]
    numels: Sequence[int]
    numel: Tensor
    network: NetworkFactors | None

    def update(
        self, factors: StepSizeFactors, step: "StepContext", rms: Pair, gradients: Pair
    ) -> StepSizeFactors:
        """The new factors.

        rms: of gradients and weights. gradients: their running RMS before this step,
        and its unit.
        """
        if step.youngest == 0:
            factors = self._at_start(factors, step, rms)
        if 2 <= step.youngest < OBSERVED_STEPS:
            running, unit = map(_detached, gradients)
            grad_rms = running * step.scheduled.rms_correction_before / unit
            factors = self._from_agreement(factors, step, grad_rms)
        if not self.tables or step.youngest >= OBSERVED_STEPS:
            return factors
        # longer steps of tables in their first steps, by their density
        xp = array_module(factors.density)
        share = xp.asarray(step.dense_shares(self.tables))
        growth, density = mean_density(share, factors.density, step.scheduled.count)
        is_early = xp.ones_like(density) * step.scheduled.count <= OBSERVED_STEPS
        longer = xp.where(is_early, growth**-self.config.rare_exponent, 1.0)
        density = xp.where(is_early, density, factors.density)
        return _scaled(factors, longer)._replace(density=density)

    def _at_start(
        self, factors: StepSizeFactors, step: "StepContext", both: Pair
    ) -> StepSizeFactors:
        """Sets the factors of parameters with their first gradient.

        both: RMS of gradients and of weights.
        """
        _, rms = both
        xp = array_module(rms)
        excesses = step.excesses()
        found = trained(excesses, self.numels, self.numel, self.config)
        share = xp.asarray(found[0])
        untrained = xp.asarray(found[1])
        offset, slope = initial_size(rms, step.scheduled.inverse_init_rms)
        square = share**2  # step sizes go with the root
        predicted = 0.0 * share + 1
        if self.network is not None and not step.hyper.scheduled:
            grad_rms, own = map(_detached_tensor, both)
            dense = step.dense_shares(self.network.matrices)
            measures = FirstMeasures(own, grad_rms, dense, excesses)
            predicted = predicted * xp.asarray(self.network.of(measures))
        new = StepSizeFactors(
            offset=offset * square,
            slope=slope * square,
            untrained=untrained,
            share=share,
            agreement=0.0 * share,
            density=factors.density,
            predicted=predicted,
        )
        is_first = xp.ones_like(rms) * step.scheduled.count == 1
        chosen = []
        for value, old in zip(new, factors, strict=True):
            chosen.append(xp.where(is_first, value, old))
        return StepSizeFactors(*chosen)

    def _from_agreement(
        self, factors: StepSizeFactors, step: "StepContext", grad_rms: Array
    ) -> StepSizeFactors:
        """Full step sizes where the first gradients agree.

        grad_rms: running RMS of gradients, in units.
        """
        xp = array_module(grad_rms)
        age = xp.ones_like(grad_rms) * step.scheduled.count - 1
        # parameters in their first steps, each in its own unit
        is_measured = (age >= 2) & (age < OBSERVED_STEPS) & (grad_rms > 0)
        divisor = xp.where(is_measured, grad_rms, 1.0) ** 2
        squares = xp.asarray(step.momentum_squares())
        squares = xp.where(is_measured, squares / divisor, 0.0)
        numel = is_measured * xp.asarray(self.numel)
        new = agreement(squares, numel, age, self.config.beta1)
        new = xp.where(is_measured, new, factors.agreement)
        released = factors.share ** (2 * (factors.agreement - new))
        remaining = (1 - factors.untrained) * (1 - new) / (1 - factors.agreement)
        factors = _scaled(factors, released)
        return factors._replace(untrained=1 - remaining, agreement=new)


def _scaled(factors: StepSizeFactors, by: Array) -> StepSizeFactors:
    return factors._replace(offset=factors.offset * by, slope=factors.slope * by)


def _detached(x: Array) -> Array:
    return x.detach() if isinstance(x, Tensor) else x


def _detached_tensor(x: Array) -> Tensor:
    # unlike `torch.as_tensor`, `from_numpy` ignores the default device
    return x.detach() if isinstance(x, Tensor) else torch.from_numpy(x)


def agreement(squares: Array, expected: Array, age: Array, beta1: float) -> Array:
    """How much the first gradients of a network agree, 0 to 1, ().

    The square of a momentum sum(w g) is that of one gradient times sum(w^2) if
    gradients are independent, and times sum(w)^2 if they are equal.

    squares: of the momenta, (n,). expected: square of one gradient, (n,). age: number
    of gradients, (n,).
    """
    total = 1 - beta1**age
    both = 1 - beta1 ** (2 * age)
    noise = (1 - beta1) / (1 + beta1) * both
    most = ((total**2 - noise) * expected).sum()
    ratio = (squares - noise * expected).sum() / most.clip(TINY)
    return ratio.clip(0.0, MAX_AGREEMENT)


def spectral_excess(weight: Tensor) -> Tensor:
    """log of largest singular value / that of random matrices with equal RMS, ().

    A lower estimate, at least 0, invariant to permutations of neurons; 0 for weights
    that are not finite. weight: (m, ...).
    """
    w = weight.detach().reshape(len(weight), -1)
    w = w.to(torch.promote_types(w.dtype, torch.float32))
    w = w / w.abs().amax().clip(min=TINY)
    v = w.sum(1)
    for _ in range(ITERATIONS):
        v = w @ (w.mT @ _normalized(v))
    v = _normalized(v)
    largest = (w.mT @ v).norm()
    rms = w.square().mean().sqrt()
    roots = len(w) ** 0.5 + w.shape[1] ** 0.5
    edge = RANDOM_EDGE * rms.mul(roots)
    ratio = largest / edge.clip(min=TINY)
    excess = ratio.clip(min=1.0).log()
    return excess.nan_to_num(0.0, 0.0)


def _normalized(v: Tensor) -> Tensor:
    return v / v.norm().clip(min=TINY)


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter has singular values."""
    return p.dim() > 1 and p.numel() > 0


def trained(
    excesses: Mapping[int, Tensor],
    numels: Sequence[int],
    like: Tensor,
    config: SoapConfig,
) -> tuple[Tensor, Tensor]:
    """Shares of the step size, and how untrained the network is, 0 to 1; (n,) each.

    Vectors have the mean excess of the matrices; matrices have at least a share of it.

    excesses: `spectral_excess` by index of each matrix. numels: of all parameters.
    like: has the dtype and device of the result.
    """
    c = config
    mean = like.new_zeros(())
    excess, total = {}, 0
    for i, x in excesses.items():
        excess[i] = x.to(like.dtype)
        total += numels[i]
    for i, x in excess.items():
        mean = mean + x * (numels[i] / total)
    own = [excess.get(i, mean) for i in range(len(numels))]
    excess_or_mean = torch.stack(own).maximum(c.trained_shared * mean)
    share = (-c.trained_exponent * excess_or_mean).exp()
    untrained = (1 - mean / c.trained_mean).clip(min=0.0)
    return share.clip(min=c.trained_least), untrained.expand(len(numels))


def initial_size(rms: Array, inverse_init_rms: Array) -> Pair:
    """(offset, slope) of the factor offset + slope * RMS(weights) of step sizes.

    Its first value is the ratio of RMS to that of PyTorch's initial weights, at most 1;
    1 for zeros and vectors.

    rms: of the initial weights. inverse_init_rms: 1 / RMS of PyTorch's, 0 for vectors.
    """
    ratio = inverse_init_rms * rms
    return (ratio == 0) + 0.0 * ratio, inverse_init_rms / ratio.clip(1.0)


def dense_shares(grads: Sequence[Tensor], tables: Sequence[int]) -> Tensor:
    """The share of nonzero elements in the gradients at `tables`, else 1; (n,)."""
    dtype = precise_dtype(grads[0].device)
    one = grads[0].new_ones((), dtype=dtype)
    found = [one] * len(grads)
    for i in tables:
        count = (grads[i] != 0).sum()
        numel = max(grads[i].numel(), 1)
        found[i] = count.to(dtype) / numel
    return torch.stack(found)


def mean_density(share: Array, density: Array, count: Array) -> Pair:
    """(new mean density of tables / old one, new mean density), (n,).

    share: of this gradient. density: previous mean, 0 at first. count: of gradients,
    including this one.
    """
    xp = array_module(share)
    is_first = density == 0
    new = xp.where(is_first, share, density + (share - density) / count)
    old = xp.where(is_first, xp.ones_like(density), density)
    return new.clip(MIN_DENSITY) / old.clip(MIN_DENSITY), new
