"""Factors of the step size from initial weights and the first gradients.

Initial weights. The first steps have the same size for any scale of the initial weights
at or above PyTorch's, but for chains. Below, it is proportional to the square root of
the ratio. Later step sizes are proportional to the RMS of the weights, up to a limit
(`largest_size`).

Invariant weights. If a norm follows a matrix, the scale of its weights has no effect,
and their gradient is orthogonal to them (van Laarhoven 2017). What counts is the change
relative to the weights: their first steps are proportional to the RMS, too.

Trained weights. No singular value of a random matrix (m, n) is above RMS (sqrt m +
sqrt n); those of trained matrices are (Martin and Mahoney 2021). A trained network is
near a minimum, where gradients are noise: its steps are shorter. If the first gradients
agree, as they do for other data, it is far from a minimum: steps have full length.

Chains. A chain of matrices and ReLUs is homogeneous in each of them: its first steps
are proportional to the root of the RMS of the weights above PyTorch's, too. Changes of
its matrices add up in its output: in long chains steps are shorter. The first gradients
show how long it is.

Tables. Rare rows of an embedding table receive few gradients: steps are longer. The
first gradients give the share of rows in a batch.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ngopt.devices import Array, Pair, array_module, precise_dtype
from ngopt.functional import Sums
from ngopt.soap.config import Measured, Network, SoapConfig
from ngopt.soap.schedule import ScheduledValues
from ngopt.soap.state import ScalarState

OBSERVED_STEPS = 8  # in which density and agreement of gradients are measured
MAX_AGREEMENT = 0.95
MIN_DENSITY = 1e-3  # share of a table's rows
# Cosine of gradient and weights. Behind norms it was at most 5e-6 in every one of the
# first steps, elsewhere at least 1e-3 in one of them.
MAX_RADIAL = 1e-4
SAME_PRODUCT = 1.003  # largest ratio of inner products of one chain
SAME_RMS = 1.00001  # largest ratio of the RMS of gradients of copies
SHORTEST_CHAIN = 3  # matrices; two can have the same product by chance
MOST_COMPARED = 4096  # parameters, each with each other; no chain has so many
ITERATIONS = 6  # of a power iteration
# Largest singular value of random matrices, in units of RMS (sqrt m + sqrt n).
RANDOM_EDGE = 1.02
TINY = 1e-30


class FirstSteps:
    """Measures the first steps, and updates factors in `ScalarState`.

    Attributes:
        numels: elements of each parameter, (n,), on the device.
        matrices: indices of parameters that have singular values.
        tables: indices of embedding tables.
    """

    def __init__(self, network: Network, config: SoapConfig):
        self.config = config
        dtype = precise_dtype(network.device)
        self.numels = torch.tensor(network.numels, dtype=dtype, device=network.device)
        shapes = enumerate(network.shapes)
        self.matrices = [i for i, x in shapes if len(x) > 1 and prod(x) > 0]
        self._sizes = torch.zeros_like(self.numels)  # elements of matrices
        self._sizes[self.matrices] = self.numels[self.matrices]
        is_table = [role.role == "embedding" for role in network.roles]
        self.tables = [i for i, of_table in enumerate(is_table) if of_table]
        self._is_table = torch.tensor(is_table, device=network.device)
        self._numels = network.numels

    def radial(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        norms: Tensor,
        sums: Sums,
    ) -> Tensor:
        """See `Measured`; norms: of gradients times those of weights, (n,)."""
        norms = norms.detach()
        radial = [torch.ones_like(norms[0])] * len(norms)
        if self.matrices:
            products = inner_products(grads, params, self.matrices)
            products = sums.of_parts(products.to(norms.dtype), self.matrices)
            for i, product in zip(self.matrices, products, strict=True):
                cosine = product.abs() / norms[i].clip(TINY)
                radial[i] = torch.where(norms[i] > 0, cosine, 1.0)
        return torch.stack(radial)

    def excess(self, params: Sequence[Tensor], sums: Sums) -> Tensor:
        """See `Measured`."""
        excess = [torch.zeros_like(self.numels[0])] * len(params)
        for i, p in sums.whole_parameters(params):
            if i in self.matrices:
                excess[i] = spectral_excess(p).to(self.numels.dtype)
        return sums.of_owners(torch.stack(excess))

    def density(
        self, grads: Sequence[Tensor], indices: Sequence[int], sums: Sums
    ) -> Tensor:
        """Shares of nonzero elements of gradients at some indices, else 1; (n,)."""
        counts = dense_counts(grads, indices)
        counts = sums.of_parts(counts, indices)
        shares = counts / self.numels[list(indices)]
        density = [torch.ones_like(self.numels[0])] * len(grads)
        for i, share in zip(indices, shares, strict=True):
            density[i] = share
        return torch.stack(density)

    def update(
        self, measured: Measured, scheduled: ScheduledValues, state: ScalarState
    ) -> ScalarState:
        """The state with the new factors."""
        if measured.excess is not None:
            state = self._at_start(measured, scheduled, state)
        state = self._from_invariance(measured, scheduled, state)
        if measured.momentum_squares is not None:
            state = self._from_agreement(measured, scheduled, state)
        if measured.density is not None and self.tables:
            state = self._from_density(measured, scheduled, state)
        return state

    def _at_start(
        self, measured: Measured, scheduled: ScheduledValues, state: ScalarState
    ) -> ScalarState:
        """Sets the factors of parameters with their first gradient."""
        rms = measured.weight_rms
        xp = array_module(rms)
        assert measured.excess is not None
        like = self.numels
        excess = torch.as_tensor(measured.excess, dtype=like.dtype, device=like.device)
        shares, untrained = trained(excess, self.matrices, self._numels, self.config)
        share = xp.asarray(shares)
        offset, slope = initial_size(rms, scheduled.inverse_init_rms)
        by_chain = self._of_chain(measured, scheduled.inverse_init_rms)
        # below 1 step sizes go with the root
        square = share**2 * xp.minimum(by_chain, by_chain**2)
        first = {
            "offset": offset * square,
            "slope": slope * square,
            "untrained": xp.asarray(untrained),
            "share": share,
            "agreement": 0.0 * share,
        }
        for key, value in first.items():
            first[key] = xp.where(measured.is_first, value, getattr(state, key))
        return state._replace(**first)

    def _of_chain(self, measured: Measured, inverse_init_rms: Array) -> Array:
        """The factor of first steps in a chain, 1 elsewhere."""
        assert measured.radial is not None
        xp = array_module(measured.radial)
        grad_rms, rms = _detached(measured.grad_rms), _detached(measured.weight_rms)
        if len(self._numels) > MOST_COMPARED:
            return xp.ones_like(rms)
        products = measured.radial * grad_rms * rms * xp.asarray(self._sizes)
        length = chain_length(products, grad_rms)
        longest = self.config.chain
        size = (rms * inverse_init_rms).clip(1.0) ** 0.5
        return xp.where(length > 0, size * longest / length.clip(longest), 1.0)

    def _from_invariance(
        self, measured: Measured, scheduled: ScheduledValues, state: ScalarState
    ) -> ScalarState:
        """First steps in proportion to weights whose scale has no effect."""
        assert measured.radial is not None
        xp = array_module(state.invariant)
        count = xp.ones_like(state.invariant) * scheduled.count
        before = xp.where(count == 1, 1.0, state.invariant)
        invariant = before * (measured.radial < MAX_RADIAL)
        invariant = xp.where(count <= OBSERVED_STEPS, invariant, state.invariant)
        ratio = (measured.weight_rms * scheduled.inverse_init_rms).clip(1.0)
        factor = self.config.invariant * ratio
        slope = state.slope * factor ** (invariant - state.invariant)
        return state._replace(slope=slope, invariant=invariant)

    def _from_agreement(
        self, measured: Measured, scheduled: ScheduledValues, state: ScalarState
    ) -> ScalarState:
        """Full step sizes where the first gradients agree."""
        xp = array_module(measured.grad_rms)
        # running RMS of gradients before this step, in units
        corrected = _detached(state.rms) * scheduled.rms_correction_before
        rms = corrected / _detached(state.scale)
        age = xp.ones_like(rms) * scheduled.count - 1
        # parameters in their first steps, each in its own unit
        is_measured = (age >= 2) & (age < OBSERVED_STEPS) & (rms > 0)
        divisor = xp.where(is_measured, rms, 1.0) ** 2
        squares = xp.where(is_measured, measured.momentum_squares / divisor, 0.0)
        numels = is_measured * xp.asarray(self.numels)
        new = agreement(squares, numels, age, self.config.beta1)
        new = xp.where(is_measured, new, state.agreement)
        released = state.share ** (2 * (state.agreement - new))
        remaining = (1 - state.untrained) * (1 - new) / (1 - state.agreement)
        state = _scaled(state, released)
        return state._replace(untrained=1 - remaining, agreement=new)

    def _from_density(
        self, measured: Measured, scheduled: ScheduledValues, state: ScalarState
    ) -> ScalarState:
        """Longer steps of embedding tables, by the density of their gradients."""
        xp = array_module(state.density)
        share = xp.where(xp.asarray(self._is_table), measured.density, 1.0)
        growth, density = mean_density(share, state.density, scheduled.count)
        is_early = xp.ones_like(density) * scheduled.count <= OBSERVED_STEPS
        longer = xp.where(is_early, growth**-self.config.rare_exponent, 1.0)
        density = xp.where(is_early, density, state.density)
        return _scaled(state, longer)._replace(density=density)


def chain_length(products: Array, grad_rms: Array) -> Array:
    """The number of matrices of a chain, ().

    A chain of L matrices and ReLUs is homogeneous in each of them, so |<gradient,
    weights>| is the same for all. These products differ between parallel networks and
    beside shortcuts. Copies of a matrix, which also have the same gradient, count as
    one. 0 if less than half of all matrices have the same product.

    products: (n,); 0 of vectors.
    """
    is_matrix = (products > 0) & (products < torch.inf)
    is_same = _alike(products, SAME_PRODUCT) & is_matrix
    copies = (is_same & _alike(grad_rms, SAME_RMS)).sum(1).clip(1)
    length = (is_same / copies).sum(1).max()
    matrices = (is_matrix / copies).sum()
    return length * ((length >= SHORTEST_CHAIN) & (2 * length >= matrices))


def _alike(values: Array, ratio: float) -> Array:
    """Whether two of n values differ by at most a ratio, (n, n)."""
    others = values[:, None]
    return (values <= ratio * others) & (others <= ratio * values)


def _scaled(state: ScalarState, by: Array) -> ScalarState:
    return state._replace(offset=state.offset * by, slope=state.slope * by)


def _detached(x: Array) -> Array:
    return x.detach() if isinstance(x, Tensor) else x


def agreement(squares: Array, expected: Array, age: Array, beta1: float) -> Array:
    """How much the first gradients of a network agree, 0 to 1, ().

    The square of a momentum sum(w g) is that of one gradient times sum(w^2) if
    gradients are independent, and times sum(w)^2 if they are equal.

    squares: of the momenta, (n,). expected: square of one gradient, (n,). age: number
    of gradients, (n,).
    """
    total = 1 - beta1**age
    noise = (1 - beta1) / (1 + beta1) * (1 - beta1 ** (2 * age))
    most = ((total**2 - noise) * expected).sum()
    ratio = (squares - noise * expected).sum() / most.clip(TINY)
    return ratio.clip(0.0, MAX_AGREEMENT)


def trained(
    excess: Tensor, matrices: Sequence[int], numels: Sequence[int], config: SoapConfig
) -> tuple[Tensor, Tensor]:
    """Shares of the step size, and how untrained the network is, 0 to 1; (n,) each.

    Vectors have the mean excess of the matrices; matrices have at least a share of it.

    Args:
        excess: `spectral_excess` of the matrices, (n,).
        matrices: their indices.
        numels: elements of each parameter.
    """
    c = config
    total = sum(numels[i] for i in matrices)
    mean = excess.new_zeros(())
    for i in matrices:
        mean = mean + excess[i] * (numels[i] / total)
    of_each = [mean] * len(numels)
    for i in matrices:
        of_each[i] = excess[i]
    excess_or_mean = torch.stack(of_each).maximum(c.trained_shared * mean)
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


def dense_counts(grads: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Numbers of nonzero elements in the gradients at some indices, (k,)."""
    dtype = precise_dtype(grads[0].device)
    return torch.stack([(grads[i] != 0).sum().to(dtype) for i in indices])


def inner_products(
    x: Sequence[Tensor], y: Sequence[Tensor], indices: Sequence[int]
) -> Tensor:
    """Inner products of the tensors at some indices, (k,), at least in float32."""
    products = []
    for i in indices:
        dtype = torch.promote_types(x[i].dtype, torch.float32)
        a, b = x[i].detach().flatten(), y[i].detach().flatten()
        products.append(torch.dot(a.to(dtype), b.to(dtype)))
    return torch.stack(products).to(precise_dtype(x[0].device))


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
