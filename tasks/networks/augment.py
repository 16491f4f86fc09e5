"""Random changes of networks that change what they are only as images change when they
are moved."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from tasks.networks.architectures import NetworkStack


def random_affine(
    stack: NetworkStack, degrees: float, scale: float, shift: float
) -> NetworkStack:
    """SIRENs whose images are turned, scaled and shifted, each at random,
    from torch's random numbers.

    A SIREN of A x + t is one with first weight W A and first bias b + W t, for any map
    of points.

    degrees: largest angle. scale: largest factor of the coordinates less 1, either way.
    shift: largest, of coordinates from -1 to 1.
    """
    weight, bias, *others = stack.params
    count = len(weight)
    angles = _between(count, degrees * pi / 180)
    scales = (_between(count, 1.0) * torch.tensor(1 + scale).log()).exp()
    cosines = scales * angles.cos()
    sines = scales * angles.sin()
    rows = torch.stack([cosines, -sines], -1), torch.stack([sines, cosines], -1)
    maps = torch.stack(rows, -2).to(weight)  # (b, 2, 2)
    shifts = torch.stack([_between(count, shift), _between(count, shift)], -1).to(
        weight
    )
    moved_bias = bias + (weight @ shifts.unsqueeze(-1)).squeeze(-1)
    return stack._replace(params=[weight @ maps, moved_bias, *others])


def _between(count: int, limit: float) -> Tensor:
    """Uniform in (-limit, limit)."""
    return limit * (2 * torch.rand(count) - 1)
