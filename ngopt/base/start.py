"""The length of steps, from initial weights, first gradients and the distance moved.

Initial weights. The first steps have the same size whatever the scale of the initial
weights. If these are smaller than PyTorch's, the size is the root of their ratio. Later
steps grow with the weights.

Trained weights. No singular value of a random matrix (m, n) is above RMS (sqrt m +
sqrt n); those of trained matrices are (Martin and Mahoney 2021). A trained network is
near a minimum, so its steps are shorter.

Tables. Rare rows of an embedding table receive few gradients, so steps are longer. The
first gradients give the share of rows in a batch.

Distance. After t steps in random directions, the distance from the initial value is
about 4 (t / (t + 28))^.5 times the root of the summed squares of the steps; after t
steps in one direction, t^.5 times. If it is larger than the first, the parameter has
far to go, as a scale that begins at zero, and steps are longer. Only parameters with
few elements are measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.base.config import SoapConfig
from ngopt.devices import Array, array_module, precise_dtype

ITERATIONS = 6  # of a power iteration
EDGE = 1.02  # of random matrices, a little beyond sqrt(m) + sqrt(n)
DENSITY = 1e-3  # the least share of a table's rows that counts
TINY = 1e-30


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


def trained(params: Sequence[Tensor], config: SoapConfig) -> tuple[Tensor, Tensor]:
    """(n,) each: shares of the step size, and how much of the network is fresh, 0 to 1.

    Vectors follow the mean of the matrices, and all matrices a share of it.
    """
    c, dtype = config, precise_dtype(params[0].device)
    matrices = {i: p for i, p in enumerate(params) if p.dim() > 1 and p.numel()}
    excess = {i: spectral_excess(p).to(dtype) for i, p in matrices.items()}
    total = sum(p.numel() for p in matrices.values())
    mean = params[0].new_zeros((), dtype=dtype)
    for i, p in matrices.items():
        mean = mean + excess[i] * (p.numel() / total)
    own = torch.stack([excess.get(i, mean) for i in range(len(params))])
    own = own.maximum(c.trained_shared * mean)
    share = (-c.trained_exponent * own).exp().clip(min=c.trained_least)
    return share, (1 - mean / c.trained_mean).clip(min=0.0).expand(len(params))


def followed(rms: Array, per_rms: Array) -> tuple[Array, Array]:
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


def mean_density(share: Array, dense: Array, count: Array) -> tuple[Array, Array]:
    """The ratio of the new mean density of tables to the old, and the new one, (n,).

    share: of this gradient. dense: the mean before, 0 at first. count: of gradients,
    this one included.
    """
    xp = array_module(share)
    is_first = dense == 0
    new = xp.where(is_first, share, dense + (share - dense) / count)
    old = xp.where(is_first, xp.ones_like(dense), dense)
    return new.clip(DENSITY) / old.clip(DENSITY), new
