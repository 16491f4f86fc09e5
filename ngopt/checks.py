"""Checks of what users give to `NGOptimizer`; each raises a ValueError that names the offender."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# Settings of groups: those that each may have for itself, and those that all have in common.
PER_GROUP = ("lr", "weight_decay", "maximize")
IN_COMMON = ("total_steps", "renew_every", "weights")
# What else a group may have: names, what schedulers keep there, and what torch adds to defaults.
NAMES = ("params", "param_names", "name")
OTHER_KEYS = (
    *NAMES,
    "initial_lr",
    "max_lr",
    "min_lr",
    "swa_lr",
    "differentiable",
)


def check_compute_dtype(dtype: Any, squares: bool) -> None:
    """Raises ValueError for a dtype that cannot compute, or, if squares of gradients are
    computed in it, not hold them."""
    is_dtype = isinstance(dtype, torch.dtype)
    # those of a byte are for storage alone
    computes = is_dtype and dtype.is_floating_point and dtype.itemsize > 1
    if dtype is not None and not computes:
        expected = "a floating point dtype of 16 bits or more, or None"
        raise ValueError(
            f"NGOptimizer: compute_dtype: expected {expected}; got {dtype!r}"
        )
    if squares and dtype == torch.float16:
        raise ValueError(
            "NGOptimizer: compute_dtype: expected torch.bfloat16, torch.float32, "
            "torch.float64 or None; got torch.float16, which cannot hold squares of "
            "gradients"
        )


def check_settings(group: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the setting, if one of a group is out of range."""
    lr = group["lr"]
    weight_decay = group["weight_decay"]
    maximize = group["maximize"]
    if isinstance(lr, Tensor):
        check_lr_tensor(lr)
    else:
        check_number("lr", lr)
    check_number("weight_decay", weight_decay)
    if not isinstance(maximize, bool):
        raise ValueError(
            f"NGOptimizer: maximize: expected True or False; got {maximize!r}"
        )
    steps = group["total_steps"]
    if steps is not None and not (isinstance(steps, Real) and 0 < float(steps) < inf):
        raise ValueError(
            f"NGOptimizer: total_steps: expected a number > 0 or None; got {steps!r}"
        )
    renew_every = group["renew_every"]
    if renew_every is not None and not (
        isinstance(renew_every, int) and renew_every >= 1
    ):
        raise ValueError(
            f"NGOptimizer: renew_every: expected an integer >= 1 or None; got {renew_every!r}"
        )


def plain(steps: Any) -> Any:
    """A number of steps as Python's, which checkpoints may hold; others as they are."""
    if not isinstance(steps, Real) or not float(steps).is_integer():
        return steps
    return int(float(steps))


def check_number(key: str, value: Any) -> None:
    if not isinstance(value, Real) or not 0 <= float(value) < inf:
        raise ValueError(f"NGOptimizer: {key}: expected a number >= 0; got {value!r}")


def check_lr_tensor(lr: Tensor) -> None:
    if lr.numel() != 1:
        shape = tuple(lr.shape)
        raise ValueError(
            f"NGOptimizer: lr: expected one number; got a tensor of shape {shape}"
        )
    # reading a value on a device would wait for it at every step
    if lr.device.type == "cpu":
        check_number("lr", lr.item())


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError if a setting is out of range, or the groups have several horizons."""
    for group in groups:
        check_settings(group)
        for key in ("total_steps", "renew_every"):
            check_in_common(key, group[key], groups[0][key])


def check_keys(group: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that groups do not have, or have in common with other values.

    common: the values that all groups have.
    """
    for key, value in group.items():
        if key in IN_COMMON:
            check_in_common(key, value, common[key])
        elif key not in (*PER_GROUP, *OTHER_KEYS) or _is_followed(key, value):
            known = ", ".join(PER_GROUP)
            raise ValueError(
                f"NGOptimizer: parameter group: expected {known}; got '{key}'"
            )
    if "params" not in group:
        raise ValueError(
            f"NGOptimizer: parameter group: expected 'params'; got {sorted(group)}"
        )


def _is_followed(key: str, value: Any) -> bool:
    """Whether a setting asks for steps that gradients go through; torch sets it to False."""
    return key == "differentiable" and bool(value)


def check_in_common(key: str, value: Any, common: Any) -> None:
    if value != common:
        expected = f"'{key}' is one for all groups, {common}"
        raise ValueError(f"NGOptimizer: parameter group: {expected}; got {value}")


def check_distinct(named: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError if a parameter is there twice."""
    seen: dict[int, str] = {}
    for name, p in named:
        if id(p) in seen:
            first = seen[id(p)]
            raise ValueError(
                f"NGOptimizer: '{name}': expected once; got it first as '{first}'"
            )
        seen[id(p)] = name


def named_members(members: Iterable[Any]) -> list[tuple[str, Any]]:
    """Parameters with their names, or with numbers where they have none."""
    found = []
    for i, member in enumerate(members):
        found.append(
            member if isinstance(member, tuple) else (f"parameter {i}", member)
        )
    return found
