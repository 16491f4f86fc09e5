"""Averages of the weights, which are in the state if `total_steps` is None."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ngopt.functional import AVERAGE, Record, State, as_average
from ngopt.graph.sharded_modules import free_gathered
from ngopt.optimizer.param_groups import Group, group_tensors
from ngopt.shard_layout import are_divided, local, real
from ngopt.user_warnings import warn


def start_or_drop_averages(
    state: State, params: Sequence[Tensor], initial: Sequence[Record]
) -> None:
    """Adapts the state to a rule that stores averages, or one that does not.

    initial: the state of the rule, of at least these parameters.
    """
    for p, expected in zip(params, initial, strict=False):
        record = state.get(p)
        if not record:
            continue
        if AVERAGE not in expected:
            record.pop(AVERAGE, None)
        elif AVERAGE not in record:
            record[AVERAGE] = as_average(real(local(p)))


def averaged_parameters(groups: Sequence[Group], state: State) -> list[Tensor]:
    """The parameters that have an average; only those without a horizon need one."""
    if groups[0]["total_steps"] is not None:
        return []
    return [p for p in group_tensors(groups) if AVERAGE in state.get(p, {})]


@torch.no_grad()
def write_averages(params: Sequence[Tensor], state: State) -> None:
    """Overwrites parameters with their averages."""
    for p in params:
        real(local(p)).copy_(state[p][AVERAGE])
    if are_divided(params):
        free_gathered()


@contextmanager
def averages_written(groups: Sequence[Group], state: State) -> Iterator[None]:
    """Writes averages into parameters, and restores the parameters at the end.

    Warns if they were changed in between.
    """
    params = averaged_parameters(groups, state)
    saved = [(p, p.detach().clone()) for p in map(local, params)]
    try:
        write_averages(params, state)
        before = _versions(params)
        yield
        if _versions(params) != before:
            warn(
                "parameters were changed within averaged(), as by step(); these "
                "changes are lost. Train outside of it."
            )
    finally:
        with torch.no_grad():
            for p, value in saved:
                p.copy_(value)
        if are_divided(params):
            free_gathered()


def _versions(params: Sequence[Tensor]) -> list[int]:
    return [0 if p.is_inference() else p._version for p in map(local, params)]
