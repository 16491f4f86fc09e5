"""What `NGOptimizer` makes sure of before it takes up state that was made elsewhere or
before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ngopt.functional import AVERAGE, Record
from ngopt.optimizer.arguments import IN_COMMON, PER_GROUP, check_groups

Group = dict[str, Any]


def checked(state_dict: Any, weights: str) -> dict[str, Any]:
    """A state_dict that has what `NGOptimizer` needs.

    weights: what the state must have been made with, by their hash.

    Raises ValueError if a part is missing or of another type, a setting out of range,
    or if it was made with other weights.
    """
    whole = as_dict(state_dict)
    missing = sorted({"state", "param_groups"} - whole.keys())
    if missing:
        raise ValueError(
            f"state_dict: expected 'state' and 'param_groups'; got no {missing}"
        )
    groups = whole["param_groups"]
    if not isinstance(groups, list):
        raise ValueError(
            f"state_dict: param_groups: expected a list; got {type(groups).__name__}"
        )
    for i, group in enumerate(groups):
        _check_group(group, f"param_groups[{i}]", weights)
    check_groups(groups)
    state = as_dict(whole["state"], "state")
    for number in chain.from_iterable(group["params"] for group in groups):
        as_dict(state.get(number, {}), f"state of {number}")
    return whole


def as_dict(value: Any, what: str = "all of it") -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"state_dict: {what}: expected a dict; got {type(value).__name__}"
        )
    return value


def _check_group(group: Any, what: str, weights: str) -> None:
    found = as_dict(group, what).get("weights")
    if found is None:
        raise ValueError(
            "state_dict: expected one of NGOptimizer; got one of another optimizer, whose "
            f"groups have {sorted(map(str, group.keys() - {'params'}))}"
        )
    if found != weights:
        made_with = str(found)[:12]
        expected = weights[:12]
        raise ValueError(
            f"state_dict: made with weights {made_with}; this optimizer has {expected} (SHA-256)"
        )
    for key in ("params", *PER_GROUP, *IN_COMMON):
        if key not in group:
            raise ValueError(
                f"state_dict: {what}: expected '{key}'; got {sorted(group)}"
            )
    params = group["params"]
    if not isinstance(params, list):
        raise ValueError(
            f"state_dict: {what}: params: expected a list; got {type(params).__name__}"
        )
    names = group.get("param_names", params)
    if len(names) != len(params):
        raise ValueError(
            f"state_dict: {what}: expected a name for each of {len(params)} params; got "
            f"{len(names)}"
        )


def in_order(saved: Sequence[Group], own: Sequence[Group]) -> list[Group]:
    """Saved groups that have the names of ours in another order, of groups or within
    one, in ours."""
    found = []
    for i, group in enumerate(_groups_in_order(saved, own)):
        names = group.get("param_names")
        wanted = own[i].get("param_names") if i < len(own) else None
        if names and wanted and names != wanted and sorted(names) == sorted(wanted):
            numbers = dict(zip(names, group["params"], strict=True))
            params = [numbers[name] for name in wanted]
            group = {**group, "params": params, "param_names": wanted}
        found.append(group)
    return found


def _groups_in_order(saved: Sequence[Group], own: Sequence[Group]) -> Sequence[Group]:
    """Saved groups in the order of ours, where each has the names of one of these."""
    if not all("param_names" in group for group in (*saved, *own)):
        return saved
    by_names = {frozenset(group["param_names"]): group for group in saved}
    wanted = [frozenset(group["param_names"]) for group in own]
    if len(by_names) < len(saved) or by_names.keys() != set(wanted):
        return saved
    return [by_names[names] for names in wanted]


def records_in_order(state_dict: Mapping[str, Any]) -> list[Record]:
    """The state of each parameter, empty where there is none."""
    numbers = [
        number for group in state_dict["param_groups"] for number in group["params"]
    ]
    return [state_dict["state"].get(number, {}) for number in numbers]


def numbered(groups: Sequence[Group], records: Sequence[Record]) -> dict[Any, Record]:
    """The inverse: records that are not empty by the numbers of parameters in groups."""
    numbers = [number for group in groups for number in group["params"]]
    pairs = zip(numbers, records, strict=True)
    return {number: record for number, record in pairs if record}


def restore_dtypes(
    state: Mapping[Tensor, Record],
    params: Sequence[Tensor],
    state_dict: Mapping[str, Any],
) -> None:
    """Undoes that torch has cast floating state to the dtypes of the parameters.

    Steps are copied to the host; torch leaves them on the device of the checkpoint.

    state: of the optimizer, as it was loaded. params: of the optimizer, in its order.
    """
    for p, record in zip(params, records_in_order(state_dict), strict=True):
        for key, value in record.items():
            if isinstance(value, Tensor):
                device = "cpu" if key == "step" else state[p][key].device
                state[p][key] = value.detach().to(device, copy=True)


def check_record(
    name: str, record: Mapping[str, Any], expected: Record, is_traced: bool
) -> None:
    """Raises ValueError if the state of a parameter lacks a tensor or one has another
    shape.

    is_traced: whether the graph of this optimizer is traced or given.
    """
    advice = ". If it was made with a traced graph, pass model=model."
    if is_traced:
        advice = ". If it was made without model=, leave it out."
    for key, like in expected.items():
        value = record.get(key)
        if not isinstance(value, Tensor):
            got = "nothing" if value is None else type(value).__name__
            raise ValueError(
                f"state_dict: '{key}' of '{name}': expected a tensor; got {got}{advice}"
            )
        if value.shape != like.shape:
            shape = tuple(like.shape)
            got = tuple(value.shape)
            raise ValueError(
                f"state_dict: '{key}' of '{name}': expected shape {shape}; got {got}"
                f"{advice}"
            )


def is_of_other_matrices(record: Record, expected: Record, shape: torch.Size) -> bool:
    """Whether a parameter of this shape has the state of other matrices than are
    expected."""
    own = {key for key, like in expected.items() if like.shape == shape}
    if any(key in record and record[key].shape != shape for key in own):
        return False
    keys = expected.keys() - {AVERAGE}  # others may be a user's
    return any(
        key not in record or record[key].shape != expected[key].shape for key in keys
    )
