"""Measurements of gradients and weights: norms, zeros, largest singular values, and
their sums over processes."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]

from ngopt.devices import precise_dtype

SAFE_NORMS = 1e-15, 1e15  # their squares are in the range of float32
ITERATIONS = 6  # of a power iteration
# Largest singular value of random matrices, in units of RMS (sqrt m + sqrt n).
RANDOM_EDGE = 1.02
TINY = 1e-30


def norms(values: Sequence[Tensor], dtype: torch.dtype, in_place: bool) -> Tensor:
    """Euclidean norm of each tensor, (n,), without overflow.

    dtype: of the result. in_place: whether neither autograd nor vmap is used; vmap has
    no foreach functions.
    """
    if not in_place:
        return torch.stack([torch.linalg.vector_norm(x, dtype=dtype) for x in values])
    # float32 is much faster on a CPU; float64 where its range is too small
    is_exact = not values[0].is_cpu or values[0].dtype == dtype
    if is_exact:
        return torch.stack(_foreach_norm(list(values), 2, dtype))
    norms = torch.stack(_foreach_norm(list(values), 2, torch.float32)).to(dtype)
    for i, norm in enumerate(norms.tolist()):
        if not SAFE_NORMS[0] < norm < SAFE_NORMS[1]:
            norms[i] = torch.linalg.vector_norm(values[i], dtype=dtype)
    return norms


def dense_counts(grads: Sequence[Tensor], indices: Sequence[int]) -> Tensor:
    """Numbers of nonzero elements in the gradients at some indices, (k,)."""
    dtype = precise_dtype(grads[0].device)
    return torch.stack([(grads[i] != 0).sum().to(dtype) for i in indices])


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


class Sums:
    """Sums over the processes that share parameters; here there is one process.

    `ngopt.distributed.soap` has those of several processes.
    """

    def norms(self, norms: Tensor) -> Tensor:
        """Norms of whole tensors; norms: of the parts in this process, (k n,)."""
        return norms

    def of_parts(self, values: Tensor, parameters: Sequence[int]) -> Tensor:
        """Sums over all parts of some parameters; values: of this process, (k,)."""
        return values

    def of_owners(self, values: Tensor) -> Tensor:
        """Values of all n parameters; values: of those that this process owns, (n,)."""
        return values

    def whole_parameters(
        self, params: Sequence[Tensor]
    ) -> Iterable[tuple[int, Tensor]]:
        """(index, all elements) of parameters that this process owns."""
        return enumerate(params)
