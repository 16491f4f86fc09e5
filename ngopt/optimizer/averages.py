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

TRAIN_MODE = "train_mode"  # of groups, as of schedule-free optimizers

Kept = dict[Tensor, Tensor]  # averages of parameters


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


@torch.no_grad()
def exchange(groups: Sequence[Group], state: State) -> Kept:
    """Exchanges the parameters for their averages: a state_dict then has both.

    Returns the averages, as parameters of 16 bits round them, and may be edited.
    """
    params = averaged_parameters(groups, state)
    kept = {p: state[p][AVERAGE].clone() for p in params}
    for p, average in kept.items():
        weights = real(local(p))
        state[p][AVERAGE].copy_(weights)
        weights.copy_(average)
    _set_mode(groups, not params, params)
    return kept


@torch.no_grad()
def exchange_back(groups: Sequence[Group], state: State, kept: Kept) -> None:
    """The inverse. Averages that were not kept, as in a state_dict, are those in the
    parameters."""
    params = [p for p in group_tensors(groups) if AVERAGE in state.get(p, {})]
    for p in params:
        weights, record = real(local(p)), state[p]
        average = kept[p] if p in kept else weights.clone()
        weights.copy_(record[AVERAGE])
        record[AVERAGE].copy_(average)
    _set_mode(groups, True, params)


def _set_mode(groups: Sequence[Group], is_training: bool, params: list[Tensor]) -> None:
    for group in groups:
        group[TRAIN_MODE] = is_training
    if are_divided(params):
        free_gathered()


@contextmanager
def warning_of_changes(groups: Sequence[Group], state: State) -> Iterator[None]:
    """Warns of parameters that are changed while they are averages."""
    params = averaged_parameters(groups, state)
    before = _versions(params)
    yield
    if not groups[0].get(TRAIN_MODE, True) and _versions(params) != before:
        warn("parameters were changed within averaged(); these changes are lost.")


def _versions(params: Sequence[Tensor]) -> list[int]:
    return [0 if p.is_inference() else p._version for p in map(local, params)]
