"""Nearly orthogonal matrices by Newton-Schulz iterations (Jordan et al. 2024)."""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5
EPSILON = 1e-7


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices with singular values near 1 and the singular vectors of the given ones.

    matrices: (..., m, n).
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPSILON)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
