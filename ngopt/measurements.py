"""Measurements of gradients and weights: zeros, largest singular values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.devices import precise_dtype

ITERATIONS = 6  # of a power iteration
# Largest singular value of random matrices, in units of RMS (sqrt m + sqrt n).
RANDOM_EDGE = 1.02
TINY = 1e-30


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
