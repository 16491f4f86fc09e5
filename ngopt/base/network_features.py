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
FEW = 6  # matrices of a network that is not deep
ZERO = -9.0  # log of a matrix' size below which it is zero
LEAST = 1e-4  # size of a matrix


def matrices_of(roles: Sequence[ParameterRole]) -> list[int]:
    """Indices of the parameters that are matrices, embeddings or outputs."""
    return [i for i, role in enumerate(roles) if role.blocks]


def horizon_features(total_steps: int) -> dict[str, float]:
    t = math.log(total_steps / HORIZON)
    return {"log steps": t, "log steps below 500": min(t, 0.0)}


def shape_features(
    roles: Sequence[ParameterRole], shapes: Sequence[Sequence[int]]
) -> dict[str, float]:
    """roles, shapes: of all parameters."""
    matrices = matrices_of(roles)
    count = max(len(matrices), 1)
    numels = [math.prod(shape) for shape in shapes]
    fans, rows = [], []
    kernels = blocks = 0
    for i in matrices:
        fans.append(math.log(max(math.prod(shapes[i][1:]), 1)))
        rows.append(math.log(shapes[i][0]))
        kernels += len(shapes[i]) > 2
        for block in roles[i].blocks:
            blocks += block.view.shape[0] > 1
    found = _depth_features(roles, count)
    found["log elements"] = math.log(max(sum(numels), 1))
    found["mean log fan"] = _mean(fans)
    found["largest log fan"] = max(fans, default=0.0)
    found["mean log rows"] = _mean(rows)
    found["share of convolutions"] = kernels / count
    found["share of blocks"] = blocks / count
    found["no matrices"] = float(not matrices)
    return found | _share_features(roles, shapes, numels)


def _depth_features(roles: Sequence[ParameterRole], count: int) -> dict[str, float]:
    """count: number of matrices, at least 1."""
    names = [role.role for role in roles]
    norms = names.count("norm")
    has_none = not norms
    depth = math.log(count)
    return {
        "log matrices": depth,
        "norms per matrix": min(norms / (2 * count), 1.0),
        "log matrices without norms": depth * has_none,
        "deep without norms": max(count - FEW, 0) ** 0.5 * has_none,
        "biases per matrix": names.count("bias") / count,
    }


def _share_features(
    roles: Sequence[ParameterRole],
    shapes: Sequence[Sequence[int]],
    numels: Sequence[int],
) -> dict[str, float]:
    """Shares of the elements by role."""
    total = max(sum(numels), 1)
    of_role = {"embedding": 0, "output": 0}
    inside = outputs = 0
    for i in matrices_of(roles):
        inside += numels[i]
        name = roles[i].role
        if name in of_role:
            of_role[name] += numels[i]
        if name == "output":
            outputs = shapes[i][0]
    return {
        "share of vectors": 1 - inside / total,
        "share of tables": of_role["embedding"] / total,
        "has tables": float(of_role["embedding"] > 0),
        "share of output": of_role["output"] / total,
        "log outputs": math.log(max(outputs, 1)),
    }


def weight_features(sizes: Tensor, excesses: Tensor) -> dict[str, Tensor]:
    """Of initial weights, () each.

    sizes: RMS of each matrix, in that of PyTorch's initial weights, (m,). excesses: see
    `spectral_excess`, (m,).
    """
    logs = sizes.clamp(min=LEAST).log()
    is_zero = logs < ZERO
    count = (~is_zero).sum().clamp(min=1)
    has_any = (~is_zero).any()
    least = torch.where(is_zero, torch.inf, logs).amin()
    largest = torch.where(is_zero, -torch.inf, logs).amax()
    return {
        "mean log size": torch.where(is_zero, 0.0, logs).sum() / count,
        "least log size": torch.where(has_any, least, 0.0),
        "largest log size": torch.where(has_any, largest, 0.0),
        "first log size": logs[0].clamp(min=ZERO),
        "last log size": logs[-1].clamp(min=ZERO),
        "zero matrices": is_zero.to(logs).mean(),
        "mean excess": excesses.mean(),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
