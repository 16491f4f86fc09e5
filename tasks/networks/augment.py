"""Augmentation of SIRENs by affine transforms of the images that they represent."""

from math import pi

import torch
from torch import Tensor

from tasks.networks.architectures import NetworkStack


def random_affine(
    stack: NetworkStack, degrees: float, scale: float, shift: float
) -> NetworkStack:
    """SIRENs whose images are rotated, scaled and shifted at random, from torch's
    random numbers.

    The SIREN at A x + t is the one with first weight W A and first bias b + W t.

    degrees: largest angle.
    scale: the factor of the coordinates is at most 1 + scale, at least 1 / (1 + scale).
    shift: largest shift, in coordinates from -1 to 1.
    """
    weight, bias, *others = stack.params
    count = len(weight)
    angles = _uniform(count, degrees * pi / 180)
    scales = (_uniform(count, 1.0) * torch.tensor(1 + scale).log()).exp()
    cosines = scales * angles.cos()
    sines = scales * angles.sin()
    rows = torch.stack([cosines, -sines, sines, cosines], -1)
    maps = rows.unflatten(-1, (2, 2)).to(weight)  # (b, 2, 2)
    shifts = torch.stack([_uniform(count, shift), _uniform(count, shift)], -1)
    shifted_bias = bias + (weight @ shifts.to(weight).unsqueeze(-1)).squeeze(-1)
    return stack._replace(params=[weight @ maps, shifted_bias, *others])


def _uniform(count: int, limit: float) -> Tensor:
    """Uniform in (-limit, limit)."""
    return limit * (2 * torch.rand(count) - 1)
