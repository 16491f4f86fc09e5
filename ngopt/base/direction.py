"""What one step knows of each parameter's direction: numbers, and the state between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ngopt.base.config import DirectionConfig
from ngopt.base.flat import Number
from ngopt.base.layout import MatrixLayout
from ngopt.base.measure import Measured
from ngopt.base.modes import Mode, factor_shape
from ngopt.functional import Record

# Added to second moments, so that nothing is divided by 0.
TINY = torch.finfo(torch.float32).tiny
# Factors and bases of more rows are kept in bfloat16: what rounding adds is far below their noise.
EXACT = 512


def init_direction(
    param: Tensor, layouts: Sequence[MatrixLayout], dtype: torch.dtype
) -> Record:
    """The state before the first gradient.

    `exp_avg`: momentum, of the parameter's shape. For the matrices number i: `exp_avg_sq_i`, second
    moments in the eigenbases, (groups, rows, kernel, channels); for each mode, such as "rows", its
    factors `rows_i` and their eigenvectors `rows_basis_i`, long ones in bfloat16.
    """
    device = param.device
    record = {
        "exp_avg": torch.zeros_like(param, dtype=dtype, requires_grad=False)
    }
    for i, layout in enumerate(layouts):
        record[f"exp_avg_sq_{i}"] = torch.zeros(
            layout.shape, dtype=dtype, device=device
        )
        for mode in layout.modes:
            like = {"dtype": kept_dtype(mode, dtype), "device": device}
            shape = factor_shape(mode, layout.shape[0])
            record[f"{mode.name}_{i}"] = torch.zeros(shape, **like)
            eye = torch.eye(mode.size, **like)
            record[f"{mode.name}_basis_{i}"] = eye.expand(shape).contiguous()
    return record


def kept_dtype(mode: Mode, dtype: torch.dtype) -> torch.dtype:
    """Of a mode's factors and bases."""
    is_exact = mode.size <= EXACT or dtype == torch.float64
    return dtype if is_exact else torch.bfloat16


def step_numbers(
    measured: Measured, shrink: Any, damping: Any, config: DirectionConfig
) -> Sequence[Any]:
    """The fields of `Shared` that belong to the direction, of one parameter or of all (n,).

    shrink, damping: those of the step; see `corrections`.
    """
    active = measured.active
    return (
        measured.recall,
        measured.multiplier,
        active * (1 - config.beta1),
        active * (1 - config.beta2),
        shrink,
        measured.mean_square * damping + TINY,
        active,
    )


def corrections(step: Any, config: DirectionConfig) -> tuple[Any, Any]:
    """Factors of second moments and of the mean square under the root of the direction.

    v and Nesterov's momentum are divided by the sums of their weights, with both under the root:
    so the first direction, too, is about 1 in size.
    """
    first = (1 - config.beta1 ** (step + 1)) * (1 - config.ahead) + config.ahead
    second = 1 - config.beta2 ** (step + 1)
    return first**2 / second, (config.epsilon * first) ** 2


def normalised(
    ahead: Tensor, second: Tensor, shrink: Number, damping: Number
) -> Tensor:
    """Momentum by the root of the second moments; for the numbers see `Shared`."""
    return ahead * (second * shrink).add_(damping).rsqrt_()


def moved(value: Tensor, momentum: Tensor) -> Tensor:
    """Values where there is momentum, else 0; several times as fast as `where`."""
    return value * momentum.sign().abs_()
