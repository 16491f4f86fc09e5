"""Arguments of `NGOptimizer`, and hyperparameters of other optimizers.

Each check raises a ValueError that names the argument, unless it documents another
error.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import distributed, nn

from ngopt.functional import UpdateRule

OF_OTHER_OPTIMIZERS = frozenset(
    """
    adjust_lr_fn alpha amsgrad beta1 beta2 beta2_decay betas capturable centered d
    dampening decoupled_weight_decay differentiable eps etas foreach fused history_size
    initial_accumulator_value lambd line_search_fn lr_decay max_eval max_iter momentum
    momentum_decay nesterov ns_coefficients ns_steps rho step_sizes t0 tolerance_change
    tolerance_grad
    """.split()
)
"""Hyperparameters of `torch.optim`, which have no effect here."""

ALIKE = 0.62  # "steps" is like "total_steps", "warmup_steps" is not
NAMES = """
    compute_dtype precondition_frequency process_group scale total_steps weight_decay
    """.split()
OTHER_NAMES = {"learning_rate": "lr", "weights": "rule"}
"""Arguments of `NGOptimizer` by names that they have elsewhere or had before."""


def ignored_settings(settings: Mapping[str, Any]) -> list[str]:
    """Those that are hyperparameters of other optimizers.

    Raises ValueError for differentiable=True, which would need another step.
    """
    if settings.get("differentiable"):
        raise ValueError(
            "NGOptimizer: differentiable: expected False; got True. To differentiate "
            "through steps, use the functional rule: rule.bind(graph)."
        )
    names = OF_OTHER_OPTIMIZERS.intersection(settings) - {"differentiable"}
    return sorted(names)


def check_names(settings: Iterable[str]) -> None:
    """Raises TypeError, as Python does, for arguments that no optimizer has."""
    for name in settings:
        if name not in OF_OTHER_OPTIMIZERS:
            text = f"NGOptimizer.__init__() got an unexpected keyword argument '{name}'"
            names = (*NAMES, *OTHER_NAMES)
            for nearest in get_close_matches(name, names, n=1, cutoff=ALIKE):
                text += f". Did you mean {OTHER_NAMES.get(nearest, nearest)}=?"
            raise TypeError(text)


def check_compute_dtype(dtype: Any, rule: UpdateRule) -> None:
    """Raises ValueError for a dtype that nothing can be computed in."""
    is_dtype = isinstance(dtype, torch.dtype)
    # dtypes of one byte are for storage only
    can_compute = is_dtype and dtype.is_floating_point and dtype.itemsize > 1
    if dtype is not None and not can_compute:
        expected = "a floating point dtype of 16 bits or more, or None"
        raise ValueError(
            f"NGOptimizer: compute_dtype: expected {expected}; got {dtype!r}"
        )
    if dtype is not None and rule.dtypes is not None and dtype not in rule.dtypes:
        names = ", ".join(map(str, rule.dtypes))
        raise ValueError(
            f"NGOptimizer: compute_dtype: expected {names} or None; got {dtype}, in "
            "which squares of gradients overflow"
        )


def check_process_group(group: Any, rule: UpdateRule) -> None:
    """Raises ValueError for a group that cannot divide the work."""
    if group is None:
        return
    if not isinstance(group, distributed.ProcessGroup):
        raise ValueError(
            "NGOptimizer: process_group: expected a torch.distributed.ProcessGroup "
            f"that contains this process, such as mesh.get_group(); got {group!r}"
        )
    if not rule.shards:
        raise ValueError(
            "NGOptimizer: process_group: expected rule='default', whose matrices can "
            f"be divided among processes; got a {type(rule).__name__}. Leave "
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
