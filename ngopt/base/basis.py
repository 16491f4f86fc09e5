"""Eigenbases of Kronecker factors: their first computation, and their renewal."""

from __future__ import annotations

import torch
from torch import Tensor

# Times the largest eigenvalue, added before a QR step:
# it keeps directions without a gradient where they are.
LIFT = 1e-3


def first_basis(factor: Tensor) -> Tensor:
    """The axes after one step towards the eigenvectors of symmetric matrices (*batch, n, n).

    Not the eigenvectors themselves: a first gradient of few examples leaves a large null space, in
    which rounding would choose them, and permuting neurons would not permute them.
    """
    axes = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return renewed_basis(factor, axes.expand_as(factor))[0]


def renewed_basis(factor: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One step of orthogonal iteration (SOAP, Vyas et al. 2024, Alg. 4):
    the new basis and the order.

    factor, basis: (*batch, n, n). Column i of the new basis follows column order[i] of the old one
    (*batch, n): columns are sorted by their Rayleigh quotients, largest first; quotients below the
    lift are all alike, as rounding decides which is larger.
    """
    product = factor @ basis
    values = (basis * product).sum(-2)
    least = LIFT * values.amax(-1, keepdim=True).clamp(min=0)
    order = torch.maximum(values, least).argsort(
        dim=-1, descending=True, stable=True
    )
    lift = least.unsqueeze(-1)
    product = torch.where(lift > 0, product + lift * basis, basis)
    columns = order.unsqueeze(-2).expand_as(product)
    # its result is column by column: where it is put must not change how products with it are
    # rounded
    return torch.linalg.qr(product.gather(-1, columns))[0].contiguous(), order
