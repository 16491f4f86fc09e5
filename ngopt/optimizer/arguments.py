"""Checks of what users give to `NGOptimizer`; each raises a ValueError that names the
offender."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

OWN_DECAY = "own_weight_decay"  # key: whether the weight decay is that of the weights

# Settings of groups: those that each may have for itself, and those that all have in
# common.
PER_GROUP = ("lr", "weight_decay", "maximize")
IN_COMMON = ("total_steps", "renew_every", "weights")
# Hyperparameters of other optimizers, which have no effect here. All other keys are
# kept and ignored, as torch does: schedulers, wrappers and users store values there.
OF_OTHERS = (
    "alpha",
    "amsgrad",
    "beta1",
    "beta2",
    "betas",
    "capturable",
    "centered",
    "dampening",
    "eps",
    "foreach",
    "fused",
    "momentum",
    "momentum_decay",
    "nesterov",
)


def check_compute_dtype(dtype: Any, squares: bool) -> None:
    """Raises ValueError for a dtype that cannot compute, or, if squares of gradients
    are computed in it, not hold them."""
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


def check_process_group(group: Any, is_default: bool) -> None:
    """Raises ValueError for what is no group of processes that this one is in, or for a
    group beside weights of a metanet."""
    if group is None:
        return
    if not isinstance(group, distributed.ProcessGroup):
        raise ValueError(
            "NGOptimizer: process_group: expected a torch.distributed.ProcessGroup that "
            f"this process is in, such as mesh.get_group(); got {group!r}"
        )
    if not is_default:
        raise ValueError(
            "NGOptimizer: process_group: expected weights='default', whose matrices can be "
            "divided among processes; got those of a metanet, which sees the whole "
            "network. Leave process_group out: every process makes the whole step."
        )


def is_scheduled(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a scheduler of torch is attached: it stores the first lr in the groups."""
    return any("initial_lr" in group for group in groups)


def with_own_decay(group: Mapping[str, Any], own: float) -> dict[str, Any]:
    """A group with a weight decay of None stored as that of the weights and a flag."""
    group = dict(group)
    if "weight_decay" in group:
        group.setdefault(OWN_DECAY, group["weight_decay"] is None)
        if group["weight_decay"] is None:
            group["weight_decay"] = own
    for key in ("lr", "weight_decay"):  # NumPy's numbers do not load with weights_only
        if isinstance(value := group.get(key), np.number):
            group[key] = value.item()
    return group


def check_settings(group: Mapping[str, Any], is_new: bool = True) -> None:
    """Raises ValueError, naming the setting, if one of a group is out of range.

    is_new: whether a user gives them. Later a scheduler may make lr negative, as for
    AdamW.
    """
    lr = group["lr"]
    weight_decay = group["weight_decay"]
    maximize = group["maximize"]
    least = 0 if is_new else -inf
    if isinstance(lr, Tensor):
        check_lr_tensor(lr, least)
    else:
        check_number("lr", lr, least)
    if weight_decay is not None or is_new:
        check_number("weight_decay", weight_decay)
    if not isinstance(maximize, bool):
        raise ValueError(
            f"NGOptimizer: maximize: expected True or False; got {maximize!r}"
        )
    for key in ("total_steps", "renew_every"):
        steps = group[key]
        is_count = isinstance(steps, int) and not isinstance(steps, bool)
        if steps is not None and not (is_count and steps >= 1):
            raise ValueError(
                f"NGOptimizer: {key}: expected an integer >= 1 or None; got {steps!r}"
            )


def plain(steps: Any) -> Any:
    """A number of steps as Python's, which checkpoints may hold; others as they are."""
    is_whole = isinstance(steps, Real) and float(steps).is_integer()
    return int(float(steps)) if is_whole and not isinstance(steps, bool) else steps


def check_number(key: str, value: Any, least: float = 0) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not least <= float(value) < inf or float(value) == -inf:
        expected = "a number >= 0" if least == 0 else "a finite number"
        raise ValueError(f"NGOptimizer: {key}: expected {expected}; got {value!r}")


def check_lr_tensor(lr: Tensor, least: float = 0) -> None:
    if lr.numel() != 1:
        shape = tuple(lr.shape)
        raise ValueError(
            f"NGOptimizer: lr: expected one number; got a tensor of shape {shape}"
        )
    # reading a value on a device would wait for it at every step
    if lr.device.type == "cpu":
        check_number("lr", lr.item(), least)


def check_no_module(params: Any) -> None:
    """Raises TypeError, as torch does, for a module in place of its parameters."""
    if isinstance(params, nn.Module) and not isinstance(params, nn.ParameterList):
        raise TypeError(
            "NGOptimizer: params: expected tensors, (name, tensor) pairs or groups; got "
            f"the module {type(params).__name__}. Pass its parameters(), and the module "
            "as model=."
        )


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError if a setting is out of range, or the groups have several
    horizons."""
    for group in groups:
        check_settings(group, is_new=False)
        for key in ("total_steps", "renew_every"):
            check_in_common(key, group[key], groups[0][key])


def check_keys(group: Mapping[str, Any], common: Mapping[str, Any]) -> list[str]:
    """The hyperparameters of another optimizer's group, which have no effect.

    common: the values that all groups have.

    Raises ValueError for values that differ from these, and for a single hyperparameter
    of other
    optimizers: whoever sets one expects an effect, but optimizers that wrap others hand
    over all.
    """
    for key in IN_COMMON:
        if key in group:
            check_in_common(key, group[key], common[key])
    ignored = [key for key in OF_OTHERS if key in group]
    if group.get("differentiable"):  # torch sets it to False
        ignored = ["differentiable"]
    is_whole = "lr" in group and "weight_decay" in group
    if len(ignored) == 1 and not is_whole:
        raise ValueError(
            "NGOptimizer: parameter group: expected lr, weight_decay, maximize; got "
            f"'{ignored[0]}', which has no effect. Leave it out."
        )
    if "params" not in group:
        raise ValueError(
            f"NGOptimizer: parameter group: expected 'params'; got {sorted(group)}"
        )
    return ignored


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
