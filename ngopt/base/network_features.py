"""What is known of a network at its first step, as a few numbers.

They come from the horizon, from roles and shapes of parameters, and from the initial
weights and first gradients. They depend neither on the order of neurons nor on the
scale of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.roles.from_graph import ParameterRole

HORIZON = 500  # steps
LOG_ZERO = -9.0  # log of a matrix' size below which it is zero
MIN_SIZE = 1e-4  # size of a matrix

OF_NETWORK = (
    "log steps",
    "log matrices",
    "mean log rows",
    "narrowest log rows",
    "mean log fan",
    "largest log fan",
    "share of convolutions",
    "share of vectors",
    "share of tables",
    "norms per matrix",
)
"""Features that are known without the weights."""
OF_WEIGHTS = "mean log size", "least log size", "zero matrices", "mean excess"
OF_GRADIENTS = "share of zeros", "slope of gradients"
FEATURES = OF_NETWORK + OF_WEIGHTS + OF_GRADIENTS


class FirstMeasures(NamedTuple):
    """Of all n parameters at their first step.

    rms: of weights, (n,). grad_rms: of gradients, (n,). dense: share of gradients that
    are not zero, (n,). excesses: `spectral_excess` by index.
    """

    rms: Tensor
    grad_rms: Tensor
    dense: Tensor
    excesses: Mapping[int, Tensor]


def matrices_of(roles: Sequence[ParameterRole]) -> list[int]:
    """Indices of the parameters that are matrices, embeddings or outputs."""
    return [i for i, role in enumerate(roles) if role.blocks]


def known_features(
    roles: Sequence[ParameterRole], shapes: Sequence[Sequence[int]], total_steps: int
) -> dict[str, float]:
    """The features `OF_NETWORK`. roles, shapes: of all parameters."""
    matrices = matrices_of(roles)
    count = max(len(matrices), 1)
    names = [role.role for role in roles]
    numels = list(map(math.prod, shapes))
    total = max(sum(numels), 1)
    fans, rows = [0.0] * (not matrices), []
    kernels = tables = 0
    of_matrices = 0
    for i in matrices:
        height, *others = shapes[i]
        fans.append(math.log(max(math.prod(others), 1)))
        rows.append(math.log(max(height, 1)))
        kernels += len(shapes[i]) > 2
        of_matrices += numels[i]
        tables += numels[i] * (names[i] == "embedding")
    values = (
        math.log(total_steps / HORIZON),
        math.log(count),
        sum(rows) / count,
        min(rows[:-1] or rows or [0.0]),  # those of the last are outputs
        sum(fans) / count,
        max(fans),
        kernels / count,
        1 - of_matrices / total,
        tables / total,
        min(names.count("norm") / (2 * count), 1.0),
    )
    return dict(zip(OF_NETWORK, values, strict=True))


def inverse_init_rms(
    roles: Sequence[ParameterRole], matrices: Sequence[int]
) -> list[float]:
    """1 / RMS of PyTorch's initial weights, of each matrix.

    These are uniform in +-fan ** -.5, so that their RMS is (3 fan) ** -.5.
    """
    found = []
    for i in matrices:
        fan = roles[i].fan_in
        found.append((3 * fan) ** 0.5 if fan else 1.0)
    return found


def weight_features(sizes: Tensor, excesses: Tensor) -> dict[str, Tensor]:
    """The features `OF_WEIGHTS`, () each.

    sizes: RMS of the initial weights of each matrix, in that of PyTorch's, (m,).
    excesses: see `spectral_excess`, (m,).
    """
    logs = sizes.clamp(min=MIN_SIZE).log()
    is_zero = logs < LOG_ZERO
    count = (~is_zero).sum()
    least = torch.where(is_zero, torch.inf, logs).amin()
    values = (
        torch.where(is_zero, 0.0, logs).sum() / count.clamp(min=1),
        torch.where(count > 0, least, 0.0),
        is_zero.to(logs).mean(),
        excesses.mean(),
    )
    return dict(zip(OF_WEIGHTS, values, strict=True))


def gradient_features(
    depths: Tensor, measures: FirstMeasures, matrices: Sequence[int]
) -> dict[str, Tensor]:
    """The features `OF_GRADIENTS`, () each. depths: of the matrices' roles, (m,).

    "share of zeros" is the mean share of zeros in gradients. "slope of gradients" is
    that of log |gradient| |weights| over depth, by least squares: gradients that vanish
    or explode. Gradients that are zero or not finite do not count; the slope also
    leaves out zero matrices.
    """
    chosen = torch.tensor(matrices, device=depths.device)
    rms, grad_rms, dense = (x[chosen].to(depths) for x in measures[:3])
    is_counted = (grad_rms > 0) & (grad_rms < torch.inf)
    zeros = torch.where(is_counted, 1 - dense, 0.0).sum()
    zeros = zeros / is_counted.sum().clamp(min=1)
    has_slope = is_counted & (rms > 0)
    product = torch.where(has_slope, rms, 1.0).log()
    product = product + torch.where(has_slope, grad_rms, 1.0).log()
    weight = has_slope.to(depths)
    share = weight / weight.sum().clamp(min=1)
    depths = depths - (share * depths).sum()
    above = (share * depths * product).sum()
    below = (share * depths.square()).sum()
    slope = torch.where(below > MIN_SIZE, above / below.clamp(min=MIN_SIZE), 0.0)
    return dict(zip(OF_GRADIENTS, (zeros, slope), strict=True))
