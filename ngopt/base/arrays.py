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


def is_on_host(values: Tensor) -> bool:
    """Whether its numbers may be looked at: they cost no wait, and nobody follows them."""
    is_followed = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return values.device.type == "cpu" and not is_followed


def array(values: Tensor) -> Array:
    """A tensor as this step computes with it."""
    return values.detach().numpy() if is_on_host(values) else values


def on(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; cheaper than `to` where it is there already."""
    return x if x.device == device else x.to(device)


def namespace(like: Array) -> Any:
    """numpy or torch: they share the names of what is used here."""
    return np if isinstance(like, np.ndarray) else torch


def array_like(values: Sequence[float], like: Array) -> Array:
    """Numbers as an array of the same kind."""
    if isinstance(like, np.ndarray):
        return np.array(values, dtype=like.dtype)
    return like.new_tensor(values)


def stacked(rows: Sequence[Array]) -> Array:
    """k arrays (n,) -> (k, n)."""
    return np.array(rows) if isinstance(rows[0], np.ndarray) else torch.stack(list(rows))


def as_tensor(values: Array) -> Tensor:
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


def at_least(values: Array, low: float) -> Array:
    """Values, or a number where that is larger; a third of the time of numpy's `clip`."""
    if isinstance(values, np.ndarray):
        return np.maximum(values, low)
    return values.clamp(min=low)


def at_most(values: Array, high: float) -> Array:
    if isinstance(values, np.ndarray):
        return np.minimum(values, high)
    return values.clamp(max=high)
