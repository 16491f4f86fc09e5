"""Numbers of all parameters in one step, a few of each, in float64 where the device has it.

Where nothing is differentiated those of the CPU are Python's, one parameter after the other: beside
a small network nothing is found sooner. Else they are tensors (n,); formulas are the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Column = Sequence[Any] | Tensor
"""A number of each parameter: n numbers, or a tensor (n,)."""


def are_on_host(values: Sequence[Tensor]) -> bool:
    """Whether their numbers may be looked at: they cost no wait, and nobody follows them."""
    is_followed = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return not is_followed and all(x.is_cpu for x in values)


def on(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; cheaper than `to` where it is there already."""
    return x if x.device == device else x.to(device)


def column(values: Sequence[float | Tensor], like: Column) -> Column:
    """Numbers, some of them perhaps tensors, as a column of the same kind."""
    if not isinstance(like, Tensor):
        return list(map(float, values))
    if torch.compiler.is_compiling():
        # one operation each, which takes a number that changes, such as lr, as it comes
        return torch.stack([like.new_ones(()) * value for value in values])
    if any(isinstance(value, Tensor) for value in values):
        return torch.stack(list(map(torch.as_tensor, values))).to(like)
    return like.new_tensor(values)


def columns(rows: Tensor, like: Column) -> Sequence[Column]:
    """Rows of a tensor (k, n) as k columns of the same kind."""
    if not isinstance(like, Tensor):
        return rows.tolist()
    return on(rows, like.device).to(like.dtype).unbind()


def as_tensor(found: Sequence[Column], like: Tensor) -> Tensor:
    """k columns -> (k, n) in the dtype and on the device of a tensor."""
    if isinstance(found[0], Tensor):
        return torch.stack([torch.as_tensor(some) for some in found]).to(like)
    return torch.tensor(found, dtype=like.dtype, device=like.device)


def of_all(function: Callable[..., Any], *given: Column) -> Sequence[Column]:
    """Columns of what a function of numbers, which returns several, says of each parameter."""
    if isinstance(given[0], Tensor):
        return function(*given)
    return list(zip(*map(function, *given), strict=True))


def where(condition: Any, value: Any, other: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, value, other)
    return value if condition else other


def at_least(value: Any, low: float) -> Any:
    return (
        value.clamp(min=low) if isinstance(value, Tensor) else max(value, low)
    )


def at_most(value: Any, high: float) -> Any:
    return (
        value.clamp(max=high) if isinstance(value, Tensor) else min(value, high)
    )
