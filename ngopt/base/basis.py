"""Eigenbases of Kronecker factors: their first computation, and their renewal."""

from __future__ import annotations

import torch
from torch import Tensor

# Times the largest eigenvalue, added before a QR step: it keeps directions without a gradient where they are.
LIFT = 1e-3


def first_basis(factor: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices (*batch, n, n), those of the largest eigenvalue first."""
    size = factor.abs().amax((-2, -1), keepdim=True)
    scaled = factor / torch.where(size > 0, size, 1)
    return torch.linalg.eigh(scaled)[1].flip(-1)


def renewed_basis(factor: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """One step of orthogonal iteration (SOAP, Vyas et al. 2024, Alg. 4): the new basis and the order.

    factor, basis: (*batch, n, n). Column i of the new basis follows column order[i] of the old one
    (*batch, n): columns are sorted by their Rayleigh quotients, largest first.
    """
    product = factor @ basis
    values = (basis * product).sum(-2)
    order = values.argsort(dim=-1, descending=True, stable=True)
    lift = LIFT * values.amax(-1)[..., None, None].clamp(min=0)
    product = torch.where(lift > 0, product + lift * basis, basis)
    columns = order.unsqueeze(-2).expand_as(product)
    return torch.linalg.qr(product.gather(-1, columns))[0], order
