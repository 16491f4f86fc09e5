"""How large the step of a parameter is beside that of another: by role,
fan and size of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ngopt.base.arrays import Column, at_least, at_most
from ngopt.base.config import SoapConfig
from ngopt.roles import ParameterRole

# Sizes of weights, in usual ones, that the step size follows:
# layers that begin at zero must leave it.
SIZES = (0.25, 10.0)


def fan_in(role: ParameterRole) -> int | None:
    """Inputs times kernel positions of one neuron; None for what is no matrix, and for tables."""
    if not role.blocks or role.role == "embedding":
        return None
    return max(prod(block.view.shape[2:]) for block in role.blocks)


def gain(role: ParameterRole, config: SoapConfig) -> float:
    """The factor of the step size that role and fan give."""
    factor = 1.0 if role.role == "matrix" else getattr(config, role.role)
    fan = fan_in(role)
    if not fan:
        return factor
    return factor * min((fan / 64) ** -config.fan_exponent, config.fan_cap)


def usual_size(role: ParameterRole) -> float | None:
    """Root mean square of PyTorch's initial weights, uniform in +- 1 / sqrt(fan_in)."""
    fan = fan_in(role)
    return (3 * fan) ** -0.5 if fan else None


def relative_sizes(rms: Column, usual: Sequence[float | None]) -> Column:
    """Sizes of weights in usual ones, 1 where none is usual.

    rms: root mean squares of those that have a usual size, in their order.
    """
    if not isinstance(rms, Tensor):
        found = iter(rms)
        return [next(found) / size if size else 1.0 for size in usual]
    known = [size for size in usual if size]
    order = iter(range(len(known)))
    places = [next(order) if size else len(known) for size in usual]
    return torch.cat((rms / rms.new_tensor(known), rms.new_ones(1)))[places]


def weight_sizes(relative: Any, exponent: float) -> Any:
    """The factor of the step size that the size of the weights, in usual ones, gives."""
    return at_most(at_least(relative, SIZES[0]), SIZES[1]) ** exponent
