"""What is known of a network before its first step, as a few numbers.

They come from the horizon, from roles and shapes of parameters, and from the initial
weights. They do not depend on the order of neurons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ngopt.roles.from_graph import ParameterRole

HORIZON = 500  # steps
ZERO = -9.0  # log of a matrix' size below which it is zero
LEAST = 1e-4  # size of a matrix

KNOWN = (
    "log steps",
    "mean log rows",
    "largest log fan",
    "log outputs",
    "share of output",
    "share of blocks",
    "has tables",
    "log matrices without norms",
    "norms per matrix",
)
"""Features that are known without the weights."""
OF_WEIGHTS = "mean log size", "largest log size", "mean excess"
FEATURES = KNOWN + OF_WEIGHTS


def matrices_of(roles: Sequence[ParameterRole]) -> list[int]:
    """Indices of the parameters that are matrices, embeddings or outputs."""
    return [i for i, role in enumerate(roles) if role.blocks]


def known_features(
    roles: Sequence[ParameterRole], shapes: Sequence[Sequence[int]], total_steps: int
) -> dict[str, float]:
    """The features `KNOWN`. roles, shapes: of all parameters."""
    matrices = matrices_of(roles)
    count = max(len(matrices), 1)
    names = [role.role for role in roles]
    norms = names.count("norm")
    numels = list(map(math.prod, shapes))
    fans, rows = [0.0], []
    blocks = last = 0
    outputs = 1
    for i in matrices:
        fans.append(math.log(max(math.prod(shapes[i][1:]), 1)))
        rows.append(math.log(max(shapes[i][0], 1)))
        for block in roles[i].blocks:
            blocks += block.view.shape[0] > 1
        if names[i] == "output":
            last += numels[i]
            outputs = max(shapes[i][0], 1)
    values = (
        math.log(total_steps / HORIZON),
        sum(rows) / count,
        max(fans),
        math.log(outputs),
        last / max(sum(numels), 1),
        blocks / count,
        float(any(names[i] == "embedding" for i in matrices)),
        math.log(count) * (not norms),
        min(norms / (2 * count), 1.0),
    )
    return dict(zip(KNOWN, values, strict=True))


def inverse_usual_sizes(
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
    logs = sizes.clamp(min=LEAST).log()
    is_zero = logs < ZERO
    count = (~is_zero).sum()
    largest = torch.where(is_zero, -torch.inf, logs).amax()
    values = (
        torch.where(is_zero, 0.0, logs).sum() / count.clamp(min=1),
        torch.where(count > 0, largest, 0.0),
        excesses.mean(),
    )
    return dict(zip(OF_WEIGHTS, values, strict=True))
