"""Renewal of eigenbases: second moments follow their columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ngopt.base.basis import renewed_basis
from ngopt.base.joined import cast
from ngopt.base.modes import MODES, Mode


def renewed(
    mode: Mode,
    factor: Tensor,
    basis: Tensor,
    second: Tensor,
    is_active: Tensor,
) -> tuple[Tensor, Tensor]:
    """The basis one step nearer to the factor's eigenvectors, and second moments in its order.

    factor, basis: (groups * parts, size, size). second: (groups, rows, kernel, channels).
    is_active: (groups,); the others stay as they are.
    """
    factor, old = (cast(x, second.dtype).detach() for x in (factor, basis))
    new, order = renewed_basis(factor, old)
    new = torch.where(by_part(is_active, mode), new, old)
    permuted = mode.permute(second, order)
    return cast(new, basis.dtype), torch.where(
        is_active.view(-1, 1, 1, 1), permuted, second
    )


def renew(
    mode: Mode,
    factor: Tensor,
    basis: Tensor,
    second: Tensor,
    is_active: Tensor,
    is_due: bool | Tensor,
) -> None:
    """`renewed` in place, where it is due: in a compiled step the host learns that when it is
    made."""
    if isinstance(is_due, Tensor):
        renew_basis(
            basis,
            second,
            factor,
            is_active,
            is_due,
            mode.name,
            mode.parts,
            mode.size,
        )
    elif is_due:
        new = renewed(mode, factor, basis, second, is_active)
        for old, value in zip((basis, second), new, strict=True):
            old.copy_(value)


@torch.library.custom_op("ngopt::renew_basis", mutates_args=("basis", "second"))
def renew_basis(
    basis: Tensor,
    second: Tensor,
    factor: Tensor,
    is_active: Tensor,
    is_due: Tensor,
    name: str,
    parts: int,
    size: int,
) -> None:
    """`renew` as one operator, which a graph holds whole. name, parts, size: of the mode."""
    renew(
        MODES[name](parts=parts, size=size),
        factor,
        basis,
        second,
        is_active,
        bool(is_due),
    )


def by_part(groups: Tensor, mode: Mode) -> Tensor:
    """(n,) of groups -> (n * parts, 1, 1)."""
    return groups.repeat_interleave(mode.parts).view(-1, 1, 1)
