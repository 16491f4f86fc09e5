"""Numbers of all parameters in one step, a few of each: (n,), in float64 where the device has it.

Where nothing is differentiated, those of the CPU are numpy's, which takes a tenth of torch's time
for so few; formulas are the same for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A numpy array or a tensor."""


def array(values: Tensor) -> Array:
    """A tensor as this step computes with it."""
    if values.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return values
    return values.detach().numpy()


def namespace(like: Array) -> Any:
    """numpy or torch: they share the names of what is used here."""
    return np if isinstance(like, np.ndarray) else torch


def array_like(values: Sequence[float], like: Array) -> Array:
    """Numbers as an array of the same kind."""
    if isinstance(like, np.ndarray):
        return np.array(values, dtype=like.dtype)
    return like.new_tensor(values)


def columns(rows: Sequence[Array]) -> Tensor:
    """Arrays (n,) -> one tensor (k, n)."""
    if isinstance(rows[0], np.ndarray):
        return torch.from_numpy(np.stack(rows))
    return torch.stack(list(rows))
