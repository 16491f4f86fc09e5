"""Parameter groups of `NGOptimizer`: what they contain, and their checks.

Each check raises a ValueError that names the argument, unless it documents another
error.
"""

from collections.abc import Iterable, Sequence
from math import inf
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ngopt.functional import UpdateRule
from ngopt.graph import ParameterSpec
from ngopt.graph.sharded_modules import check_no_dtensors, check_not_flattened
from ngopt.optimizer.arguments import check_distinct, check_no_module, ignored_settings

Group = dict[str, Any]

# Settings of groups: those that may differ, and those that all groups share.
PER_GROUP = ("lr", "scale", "weight_decay", "maximize")
COUNTS = ("total_steps", "precondition_frequency", "factor_rows")  # integers or None
SHARED = (*COUNTS, "reference_lr", "lr_schedule")
BUILT_IN = "built-in"  # `lr_schedule`: see `learning_rates`


def group_tensors(groups: Iterable[Group]) -> list[Tensor]:
    """All parameters, in order."""
    return [p for group in groups for p in group["params"]]


def group_names(groups: Iterable[Group]) -> list[str]:
    """Names of all parameters; numbers where there are none.

    Raises ValueError if a group has not as many names as parameters.
    """
    names: list[str] = []
    for i, group in enumerate(groups):
        count = len(group["params"])
        group_names = group.get("param_names")
        if group_names is None:
            first = len(names)
            group_names = [f"parameter {k}" for k in range(first, first + count)]
        if len(group_names) != count:
            raise ValueError(
                f"NGOptimizer: param_groups[{i}]: expected a name in 'param_names' for "
                f"each of its {count} parameters; got {len(group_names)}"
            )
        names += group_names
    return names


def group_specs(groups: Sequence[Group]) -> list[ParameterSpec]:
    """Names and shapes of all parameters.

    Raises ValueError if a parameter of a lazy module has no shape yet.
    """
    specs = []
    for name, p in zip(group_names(groups), group_tensors(groups), strict=True):
        if is_lazy(p):
            raise ValueError(
                f"NGOptimizer: '{name}': expected a parameter with a shape; got one of "
                "a lazy module that has no shape yet. Run the module before."
            )
        specs.append(ParameterSpec.of(name, p))
    return specs


def is_lazy(p: Tensor) -> bool:
    """As torch's own function, which `torch.compile` cannot trace."""
    return isinstance(p, UninitializedParameter)


def as_python_int(steps: Any) -> Any:
    """A whole number as an int, which checkpoints may store; other values unchanged."""
    is_number = isinstance(steps, Real) and not isinstance(steps, bool)
    is_whole = is_number and float(steps).is_integer()
    return int(float(steps)) if is_whole else steps


def complete_new_group(
    group: Group, defaults: Group, groups: Sequence[Group], rule: UpdateRule
) -> list[str]:
    """Checks a new group and adds the settings that all groups share to it.

    groups: that the optimizer already has. Returns the group's hyperparameters of other
    optimizers, which have no effect.
    """
    shared = dict(defaults)
    if groups:
        shared.update({key: groups[0][key] for key in SHARED})
    for key in ("lr", "weight_decay", "scale"):
        value = group.get(key, defaults[key])
        if isinstance(value, np.number):  # not loaded with weights_only=True
            group[key] = value.item()
    for key in COUNTS:
        if key in group:
            group[key] = as_python_int(group[key])
        may_be_set = not groups or key != "total_steps"
        if shared[key] is None and may_be_set:
            shared[key] = group.get(key)
            for earlier in groups:
                earlier[key] = shared[key]
        if key in group and group[key] != shared[key]:
            raise _not_shared(key, group[key], shared[key])
    if "params" not in group:
        raise ValueError(
            f"NGOptimizer: parameter group: expected 'params'; got {sorted(group)}"
        )
    # SAM stores its rho in groups
    ignored = [key for key in ignored_settings(group) if key != "rho"]
    check_settings({**shared, **group})
    group.update({key: shared[key] for key in SHARED})
    params = group["params"]
    check_no_module(params)
    if isinstance(params, Tensor):
        group["params"] = params = [params]
    if not isinstance(params, set):  # torch handles these
        group["params"] = list(params)
        named = []
        for i, p in enumerate(group["params"]):
            named.append(p if isinstance(p, tuple) else (f"parameter {i}", p))
        check_distinct(named)
        check_not_flattened(named)
        if not rule.shards:
            check_no_dtensors(named)
        has_names = any(isinstance(p, tuple) for p in group["params"])
        has_names |= "param_names" in group
        if groups and has_names != ("param_names" in groups[0]):
            group["params"] = [p for _, p in named]
            for partly_named in (*groups, group):  # for which torch has an error
                partly_named.pop("param_names", None)
    return ignored


def check_groups(groups: Sequence[Group]) -> None:
    """Checks the values of all groups, and that counts are equal in all."""
    first = groups[0]
    for group in groups:
        check_settings(group, is_new=False)
        for key in COUNTS:
            if group[key] != first[key]:
                raise _not_shared(key, group[key], first[key])


def _not_shared(key: str, value: Any, shared: Any) -> ValueError:
    return ValueError(
        f"NGOptimizer: parameter group: expected one '{key}' for all groups, "
        f"{shared}; got {value}"
    )


def check_settings(group: Group, is_new: bool = True) -> None:
    """Checks the values of one group.

    is_new: whether a user passes them. Later a scheduler may make lr negative, as for
    AdamW.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        got = f"a tensor of shape {tuple(lr.shape)}"
        raise ValueError(f"NGOptimizer: lr: expected one number; got {got}")
    if isinstance(lr, Tensor):
        lr = readable(lr)
    if not isinstance(lr, Tensor):  # elsewhere it would be a host sync at every step
        _check_number("lr", lr, 0 if is_new else -inf)
    _check_number("scale", group["scale"])
    weight_decay = group["weight_decay"]
    if isinstance(weight_decay, tuple | list):
        raise ValueError(
            f"NGOptimizer: weight_decay: expected a number >= 0; got {weight_decay!r}. "
            "If these are Adam's betas, leave them out: they have no effect."
        )
    if weight_decay is not None:
        _check_number("weight_decay", weight_decay)
    maximize = group["maximize"]
    if not isinstance(maximize, bool):
        raise ValueError(
            f"NGOptimizer: maximize: expected True or False; got {maximize!r}"
        )
    for key in COUNTS:
        count = group[key]
        is_int = isinstance(count, int) and not isinstance(count, bool)
        if count is not None and not (is_int and count >= 1):
            raise ValueError(
                f"NGOptimizer: {key}: expected an integer >= 1 or None; got {count!r}"
            )


def readable(lr: float | Tensor) -> float | Tensor:
    """A number, or a detached tensor () if reading it would be a host sync."""
    if not isinstance(lr, Tensor):
        return float(lr)  # of numpy, too, which checkpoints would not load
    if lr.is_cpu and not torch.compiler.is_dynamo_compiling():
        return lr.item()
    return lr.detach().reshape(())


def _check_number(key: str, value: Any, least: float = 0) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not least <= float(value) < inf or float(value) == -inf:
        expected = "a number >= 0" if least == 0 else "a finite number"
        raise ValueError(f"NGOptimizer: {key}: expected {expected}; got {value!r}")
