"""Parameters, names and settings in the groups of an optimizer."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from ngopt.graph import ParameterSpec

Group = dict[str, Any]

OWN_DECAY = "own_weight_decay"
"""Key of a group: whether its weight decay is the rule's own."""


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


def is_scheduled(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a scheduler of torch is attached, which stores the first lr in groups."""
    return any("initial_lr" in group for group in groups)


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


def as_python_int(steps: Any) -> Any:
    """A whole number as an int, which checkpoints may store; other values unchanged."""
    is_number = isinstance(steps, Real) and not isinstance(steps, bool)
    is_whole = is_number and float(steps).is_integer()
    return int(float(steps)) if is_whole else steps
