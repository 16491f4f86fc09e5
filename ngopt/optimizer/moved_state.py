"""State of parameters that take the places of others, as points are cut or copied."""

from typing import Any

from torch import Tensor

from ngopt.functional import AVERAGE, Record

AXES = "groups", "rows", "channels", "kernel"  # of momentum and second moments


def selected_rows(record: Record, source: Tensor, rows: int) -> Record:
    """The state for some rows of a parameter, which has `rows` of them.

    Momentum and second moments are left out if rows share a Kronecker factor.

    source: indices of rows, which may repeat.
    """
    selected = dict(record)
    if "path" in record:  # a sum over all rows
        selected["path"] = record["path"] * (len(source) / rows)
    for key, value in record.items():
        if not key.startswith(("exp_avg", "displacement", AVERAGE)):
            continue
        shape = value.shape[:1] if key == AVERAGE else value.shape
        axis = shape.index(rows) if rows in shape else None
        if axis is None or f"{AXES[axis]}_0" in record:
            del selected[key]
        else:
            selected[key] = value.index_select(axis, source)
    return selected


def carried_over(record: Record, initial: Record) -> Record:
    """The initial state of a parameter, with what fits of that of another.

    Second moments that do not fit start at their mean. A record without its scalars, or
    with zeros in their place, is of no use.
    """
    scalars = [key for key, value in initial.items() if value.dim() == 0]
    is_whole = all(_fits(record.get(key), initial[key]) for key in scalars)
    if not is_whole or float(record.get("path", 1)) == 0:
        return initial
    carried = dict(initial)
    for key, value in initial.items():
        old: Any = record.get(key)
        if _fits(old, value):
            carried[key] = old
        elif key.startswith("exp_avg_sq") and getattr(old, "ndim", 0) == value.ndim:
            axes = range(value.ndim)
            changed = [axis for axis in axes if old.shape[axis] != value.shape[axis]]
            carried[key] = value + old.mean(changed, keepdim=True)
    return carried


def _fits(value: Any, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape
