"""Checks and conversions of state_dicts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ngopt.distributed.shards import Shards
from ngopt.functional import Gradients, Record, State
from ngopt.optimizer.log_messages import logger
from ngopt.optimizer.param_groups import PER_GROUP, SHARED, Group, check_groups
from ngopt.user_warnings import warn


def checked(state_dict: Any) -> dict[str, Any]:
    """A state_dict that is complete.

    Raises ValueError if a part is missing or of another type, or a setting out of
    range.
    """
    parts = check_type(state_dict, dict)
    missing = sorted({"state", "param_groups"} - parts.keys())
    if missing:
        raise ValueError(
            f"state_dict: expected 'state' and 'param_groups'; got no {missing}"
        )
    groups = check_type(parts["param_groups"], list, "param_groups")
    if not groups:
        raise ValueError("state_dict: param_groups: expected groups; got none")
    for i, group in enumerate(groups):
        _check_group(group, f"param_groups[{i}]")
    check_groups(groups)
    state = check_type(parts["state"], dict, "state")
    for number in _numbers(groups):
        check_type(state.get(number, {}), dict, f"state of {number}")
    return parts


def check_type(value: Any, kind: type, part: str = "") -> Any:
    """Returns the value. Raises ValueError if it is of another type.

    part: of the state_dict; "" for all of it.
    """
    if not isinstance(value, kind):
        what = f"state_dict: {part}" if part else "state_dict"
        got = type(value).__name__
        raise ValueError(f"{what}: expected a {kind.__name__}; got {got}")
    return value


def initializes(
    groups: Sequence[Group], grads: Gradients, shards: Shards | None
) -> bool:
    """Whether a first step makes the state alone, for torch.distributed.checkpoint.

    Then every lr is 0, and so is every gradient in all processes. Gradients on the meta
    device count as 0. An lr on an accelerator is not read.
    """
    for group in groups:
        lr = group["lr"]
        if (isinstance(lr, Tensor) and not lr.is_cpu) or float(lr) != 0:
            return False
    present = [grad for grad in grads if grad is not None and not grad.is_meta]
    is_step = any(bool(grad.any()) for grad in present)
    if shards is not None:
        is_step = any(shards.collectives.gather_integers(int(is_step)))
    return not is_step


def warn_of_changes(saved: Any, present: Mapping[str, str]) -> None:
    """Warns of constants that differ from those of the run that is resumed.

    saved: the "rule" of a state_dict, which may be missing. present: of this optimizer.
    """
    if not isinstance(saved, Mapping):
        return
    changes = []
    for key in ("base", "metanet", "cooldown", "multiplier", "weights"):
        if saved.get(key) != present.get(key):
            changes.append(f"{key}: {saved.get(key)} saved, {present.get(key)} here")
    # configs of other rules have other names
    for key in () if changes else ("base_config", "config"):
        old, new = (json.loads(values.get(key, "{}")) for values in (saved, present))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                values = f"{old.get(name)} saved, {new.get(name)} here"
                changes.append(f"{name}: {values}")
    if changes:
        warn(
            f"the run that is resumed had other constants: {'; '.join(changes)}. Pass "
            "the rule= of the saved run to keep them."
        )


def _check_group(group: Group, name: str) -> None:
    check_type(group, dict, name)
    if "reference_lr" not in group:
        keys = sorted(map(str, group.keys() - {"params"}))
        raise ValueError(
            "state_dict: expected one of NGOptimizer; got one of another optimizer, "
            f"whose groups have {keys}"
        )
    for key in ("params", *PER_GROUP, *SHARED):
        if key not in group:
            got = sorted(group)
            raise ValueError(f"state_dict: {name}: expected '{key}'; got {got}")
    params = check_type(group["params"], list, f"{name}: params")
    names = group.get("param_names", params)
    if len(names) != len(params):
        raise ValueError(
            f"state_dict: {name}: expected a name for each of {len(params)} params; "
            f"got {len(names)}"
        )


def in_order(saved: Sequence[Group], present: Sequence[Group]) -> list[Group]:
    """Saved groups in the order of the present ones, matched by parameter names.

    Groups that cannot be matched, or have no names, keep their order. Raises ValueError
    if one has another number of parameters.
    """
    ordered = list(saved)
    if all("param_names" in group for group in (*saved, *present)):
        by_names = {frozenset(group["param_names"]): group for group in saved}
        present_names = [frozenset(group["param_names"]) for group in present]
        if len(by_names) == len(saved) and by_names.keys() == set(present_names):
            ordered = [by_names[names] for names in present_names]
    for i, group in enumerate(ordered[: len(present)]):
        expected, got = len(present[i]["params"]), len(group["params"])
        if expected != got:
            raise ValueError(
                f"state_dict: param_groups[{i}]: expected {expected} parameters, as in "
                f"this optimizer; got {got}"
            )
        names = group.get("param_names")
        wanted = present[i].get("param_names")
        if names and wanted and names != wanted and sorted(names) == sorted(wanted):
            numbers = dict(zip(names, group["params"], strict=True))
            params = [numbers[name] for name in wanted]
            ordered[i] = {**group, "params": params, "param_names": wanted}
    return ordered


def with_present_settings(saved: list[Group], present: Sequence[Group]) -> list[Group]:
    """Saved groups with the `total_steps` of the present ones, if these have any.

    Logs which other settings are those of the saved groups.
    """
    scale = present[0]["scale"]
    if scale not in (1.0, saved[0]["scale"]):
        logger.warning(
            "NGOptimizer: the loaded state has scale=%g, which replaces scale=%g. Set "
            "it again: for group in opt.param_groups: group['scale'] = %g.",
            saved[0]["scale"],
            scale,
            scale,
        )
    if "initial_lr" in saved[0] and "initial_lr" not in present[0]:
        logger.warning(
            "NGOptimizer: the learning rates of the loaded state are those of a "
            "scheduler. Attach it to this optimizer and load its state: without it, "
            "the step size stays as it is in the state."
        )
    total_steps = present[0]["total_steps"]
    if total_steps is None or saved[0]["total_steps"] == total_steps:
        return saved
    logger.info(
        "NGOptimizer: the loaded state has total_steps=%s; total_steps=%s is kept.",
        saved[0]["total_steps"],
        total_steps,
    )
    return [{**group, "total_steps": total_steps} for group in saved]


def group_of_state(saved: Group, present: Group) -> Group:
    """A present group with the saved settings that decide which state there is."""
    return {**present, **{key: saved[key] for key in ("total_steps", "factor_rows")}}


def _numbers(groups: Sequence[Group]) -> list[Any]:
    """The numbers of all parameters in the groups of a state_dict."""
    return [number for group in groups for number in group["params"]]


def records_in_order(state_dict: Mapping[str, Any]) -> list[Record]:
    """The state of each parameter, empty where there is none."""
    state = state_dict["state"]
    return [state.get(number, {}) for number in _numbers(state_dict["param_groups"])]


def numbered(groups: Sequence[Group], records: Sequence[Record]) -> dict[Any, Record]:
    """The inverse: non-empty records by the numbers of their parameters."""
    by_number = dict(zip(_numbers(groups), records, strict=True))
    return {number: record for number, record in by_number.items() if record}


def restore_dtypes(
    state: State, params: Sequence[Tensor], state_dict: Mapping[str, Any]
) -> None:
    """Restores dtypes of state, which torch casts to the dtypes of the parameters.

    Steps are copied to the host; torch leaves them on the device of the checkpoint.

    state, params: of the optimizer, after torch has loaded `state_dict`.
    """
    for p, record in zip(params, records_in_order(state_dict), strict=True):
        for key, value in record.items():
            if isinstance(value, Tensor):
                device = "cpu" if key == "step" else state[p][key].device
                state[p][key] = value.detach().to(device, copy=True)


def check_records(
    names: Sequence[str],
    records: Sequence[Record],
    initial: Sequence[Record],
    is_exact: bool,
) -> None:
    """Raises ValueError if a tensor of a parameter's state is missing or misshapen.

    names, records, initial: of parameters; there may be more records than names, for
    which torch raises an error. is_exact: whether the graph of this optimizer is traced
    or given.
    """
    for name, record, expected in zip(names, records, initial, strict=False):
        advice = "If it was made with a traced graph, pass model=model."
        scalars = []  # which each rule has its own of
        for values in (record, expected):
            scalars.append({k for k, x in values.items() if getattr(x, "ndim", 1) == 0})
        if scalars[0] != scalars[1]:
            advice = "It is of another rule: pass the rule= that it was made with."
        elif is_exact:
            advice = "If it was made without model=, leave it out."
        for key, like in expected.items() if record else ():
            value, got = record.get(key), "nothing"
            if isinstance(value, Tensor):
                got = f"shape {tuple(value.shape)}"
            elif value is not None:
                got = type(value).__name__
            if got != f"shape {tuple(like.shape)}":
                raise ValueError(
                    f"state_dict: '{key}' of '{name}': expected a tensor of shape "
                    f"{tuple(like.shape)}; got {got}. {advice}"
                )
