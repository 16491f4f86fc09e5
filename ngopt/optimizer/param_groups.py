"""Arguments and parameter groups of `NGOptimizer`: what they contain, and their checks.

Each check raises a ValueError that names the argument, unless it documents another
error.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parameter import UninitializedParameter

from ngopt.graph import ParameterSpec
from ngopt.graph.sharded_modules import check_no_dtensors, check_not_flattened
from ngopt.pretrained import LearnedOptimizer, has_hash

Group = dict[str, Any]

# Settings of groups: those that may differ, and those that all groups share.
PER_GROUP = ("lr", "weight_decay", "maximize")
STEP_COUNTS = ("total_steps", "renew_every")
SHARED = (*STEP_COUNTS, "weights")
OWN_DECAY = "own_weight_decay"
"""Key of a group: whether its weight decay is the rule's own."""
# Hyperparameters of other optimizers, which have no effect here. All other keys are
# kept and ignored, as torch does: schedulers, wrappers and users store values there.
OF_OTHER_OPTIMIZERS = """
    alpha amsgrad beta1 beta2 betas capturable centered dampening eps foreach fused
    momentum momentum_decay nesterov
""".split()


def group_tensors(groups: Iterable[Group]) -> list[Tensor]:
    """All parameters, in order."""
    params: list[Tensor] = []
    for group in groups:
        params += group["params"]
    return params


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


def is_scheduled(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a scheduler of torch is attached, which stores the first lr in groups."""
    return any("initial_lr" in group for group in groups)


def as_python_int(steps: Any) -> Any:
    """A whole number as an int, which checkpoints may store; other values unchanged."""
    is_number = isinstance(steps, Real) and not isinstance(steps, bool)
    is_whole = is_number and float(steps).is_integer()
    return int(float(steps)) if is_whole else steps


def with_own_decay(group: Mapping[str, Any], own_decay: float) -> Group:
    """A copy of a group in which a weight decay of None is a number and a flag.

    own_decay: of the weights, in AdamW's units.
    """
    group = dict(group)
    if "weight_decay" in group:
        group.setdefault(OWN_DECAY, group["weight_decay"] is None)
        if group["weight_decay"] is None:
            group["weight_decay"] = own_decay
    for key in ("lr", "weight_decay"):
        value = group.get(key)
        if isinstance(value, np.number):  # these do not load with weights_only=True
            group[key] = value.item()
    return group


def complete_new_group(
    group: Group, defaults: Group, groups: Sequence[Group], learned: LearnedOptimizer
) -> list[str]:
    """Checks a new group and adds the settings that all groups share to it.

    groups: that the optimizer already has. Returns the group's hyperparameters of other
    optimizers, which have no effect.
    """
    shared = dict(defaults)
    if has_hash(group.get("weights"), shared["weights"]):
        group["weights"] = shared["weights"]
    for key in STEP_COUNTS:
        if key in group:
            group[key] = as_python_int(group[key])
        if groups:
            shared[key] = groups[0][key]
        may_be_set = not groups or key == "renew_every"
        if shared[key] is None and may_be_set:
            shared[key] = group.get(key)
    ignored = _check_keys(group, shared)
    check_settings({**shared, **group})
    for key in STEP_COUNTS:
        group.setdefault(key, shared[key])
    params = group["params"]
    check_no_module(params)
    if not isinstance(params, Tensor | set):  # torch handles these
        group["params"] = list(params)
        named = []
        for i, p in enumerate(group["params"]):
            named.append(p if isinstance(p, tuple) else (f"parameter {i}", p))
        check_distinct(named)
        check_not_flattened(named)
        if not learned.can_be_sharded:
            check_no_dtensors(named)
    return ignored


def _check_keys(group: Group, shared: Group) -> list[str]:
    """The keys of a group that are hyperparameters of other optimizers.

    One alone is an error, as its user expects an effect. Wrappers of optimizers pass
    all of them; these groups are accepted.
    """
    for key in SHARED:
        if key in group and group[key] != shared[key]:
            raise _not_shared(key, group[key], shared[key])
    ignored = [key for key in OF_OTHER_OPTIMIZERS if key in group]
    if group.get("differentiable"):  # torch sets it to False
        ignored = ["differentiable"]
    is_complete = "lr" in group and "weight_decay" in group
    if len(ignored) == 1 and not is_complete:
        raise ValueError(
            "NGOptimizer: parameter group: expected lr, weight_decay, maximize; got "
            f"'{ignored[0]}', which has no effect. Leave it out."
        )
    if "params" not in group:
        raise ValueError(
            f"NGOptimizer: parameter group: expected 'params'; got {sorted(group)}"
        )
    return ignored


def check_groups(groups: Sequence[Group]) -> None:
    """Checks the values of all groups, and that step counts are equal in all."""
    first = groups[0]
    for group in groups:
        check_settings(group, is_new=False)
        for key in STEP_COUNTS:
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
    if isinstance(lr, Tensor) and lr.device.type == "cpu":
        lr = lr.item()
    if not isinstance(lr, Tensor):  # elsewhere it would be a host sync at every step
        _check_number("lr", lr, 0 if is_new else -inf)
    weight_decay = group["weight_decay"]
    if weight_decay is not None or is_new:
        _check_number("weight_decay", weight_decay)
    maximize = group["maximize"]
    if not isinstance(maximize, bool):
        raise ValueError(
            f"NGOptimizer: maximize: expected True or False; got {maximize!r}"
        )
    for key in STEP_COUNTS:
        steps = group[key]
        is_int = isinstance(steps, int) and not isinstance(steps, bool)
        if steps is not None and not (is_int and steps >= 1):
            raise ValueError(
                f"NGOptimizer: {key}: expected an integer >= 1 or None; got {steps!r}"
            )


def _check_number(key: str, value: Any, least: float = 0) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not least <= float(value) < inf or float(value) == -inf:
        expected = "a number >= 0" if least == 0 else "a finite number"
        raise ValueError(f"NGOptimizer: {key}: expected {expected}; got {value!r}")


def check_compute_dtype(dtype: Any, learned: LearnedOptimizer) -> None:
    """Raises ValueError for a dtype that nothing can be computed in."""
    is_dtype = isinstance(dtype, torch.dtype)
    # dtypes of one byte are for storage only
    can_compute = is_dtype and dtype.is_floating_point and dtype.itemsize > 1
    if dtype is not None and not can_compute:
        expected = "a floating point dtype of 16 bits or more, or None"
        raise ValueError(
            f"NGOptimizer: compute_dtype: expected {expected}; got {dtype!r}"
        )
    if dtype == torch.float16 and learned.squares_gradients:
        raise ValueError(
            "NGOptimizer: compute_dtype: expected torch.bfloat16, torch.float32, "
            "torch.float64 or None; got torch.float16, in which squares of gradients "
            "overflow"
        )


def check_process_group(group: Any, learned: LearnedOptimizer) -> None:
    """Raises ValueError for a group that cannot divide the work."""
    if group is None:
        return
    if not isinstance(group, distributed.ProcessGroup):
        raise ValueError(
            "NGOptimizer: process_group: expected a torch.distributed.ProcessGroup "
            f"that contains this process, such as mesh.get_group(); got {group!r}"
        )
    if not learned.can_be_sharded:
        raise ValueError(
            "NGOptimizer: process_group: expected weights='default', whose matrices "
            "can be divided among processes; got weights of a metanet. Leave "
            "process_group out: every process then computes the whole step."
        )


def check_no_module(params: Any) -> None:
    """Raises TypeError, as torch does, for a module in place of its parameters."""
    if isinstance(params, nn.Module) and not isinstance(params, nn.ParameterList):
        raise TypeError(
            "NGOptimizer: params: expected tensors, (name, tensor) pairs or groups; "
            f"got the module {type(params).__name__}. Pass its parameters(), and the "
            "module as model=."
        )


def check_distinct(named: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError for a parameter that occurs twice."""
    names: dict[int, str] = {}
    for name, p in named:
        if id(p) in names:
            first = names[id(p)]
            raise ValueError(
                f"NGOptimizer: parameter '{name}' appears twice (also as '{first}')"
            )
        names[id(p)] = name
