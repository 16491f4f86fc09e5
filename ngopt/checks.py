"""Checks of what users give to `NGOptimizer`; each raises a ValueError that names the offender."""

from __future__ import annotations

from math import inf
from numbers import Real
from typing import Any

from torch import Tensor

from ngopt.functional import Record


def checked_mapping(value: Any, what: str = "all of it") -> dict[Any, Any]:
    if not isinstance(value, dict):
        got = type(value).__name__
        raise ValueError(f"state_dict: {what}: expected a dict; got {got}")
    return value


def check_record(name: str, record: Any, expected: Record) -> None:
    """Raises ValueError if the state of a parameter lacks a tensor or one has another shape."""
    for key, like in expected.items():
        value = record.get(key) if isinstance(record, dict) else None
        if not isinstance(value, Tensor):
            got = "nothing" if value is None else type(value).__name__
            raise ValueError(f"state_dict: '{key}' of '{name}': expected a tensor; got {got}")
        if value.shape != like.shape:
            expected_shape, got = tuple(like.shape), tuple(value.shape)
            raise ValueError(f"state_dict: '{key}' of '{name}': expected shape {expected_shape}; got {got}")


def check_once(group: dict[str, Any]) -> None:
    """Raises ValueError if a parameter is twice in a group."""
    if isinstance(group["params"], Tensor | set):
        return
    group["params"] = list(group["params"])
    seen: set[int] = set()
    for i, item in enumerate(group["params"]):
        p = item[1] if isinstance(item, tuple) else item
        if id(p) in seen:
            name = item[0] if isinstance(item, tuple) else f"parameter {i}"
            raise ValueError(f"NGOptimizer: '{name}': expected once in its group; got it twice")
        seen.add(id(p))


def check_hyper(group: dict[str, Any]) -> None:
    """Raises ValueError, naming the setting, if one is out of range."""
    for key in ("lr", "weight_decay"):
        value = group[key]
        if isinstance(value, Tensor):
            check_tensor(key, value)
        elif not isinstance(value, Real) or not 0 <= float(value) < inf:
            raise ValueError(f"NGOptimizer: {key}: expected a number >= 0; got {value}")
    steps = group["total_steps"]
    if steps is not None and not (isinstance(steps, Real) and float(steps) > 0):
        raise ValueError(f"NGOptimizer: total_steps: expected a number > 0 or None; got {steps}")


def check_tensor(key: str, value: Tensor) -> None:
    if value.numel() != 1:
        shape = tuple(value.shape)
        raise ValueError(f"NGOptimizer: {key}: expected one number; got a tensor of shape {shape}")
    # reading a value on a device would wait for it at every step
    if value.device.type == "cpu" and not 0 <= value.item() < inf:
        raise ValueError(f"NGOptimizer: {key}: expected a number >= 0; got {value.item()}")
