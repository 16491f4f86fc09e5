"""State of parameters that take the places of others, or that a new graph divides into
other matrices."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from ngopt.functional import Record, State
from ngopt.packing import ParameterState
from ngopt.shard_layout import local, real
from ngopt.user_warnings import warn

AXES = "groups", "rows", "channels", "kernel"  # of momentum and second moments


def selected_rows(record: Record, source: Tensor, rows: int) -> Record:
    """The state for some rows of a parameter, which has `rows` of them.

    What rows share by a Kronecker factor is left out.

    source: indices of rows, which may repeat.
    """
    selected = dict(record)
    if "path" in record:  # a sum over all rows
        selected["path"] = record["path"] * (len(source) / rows)
    for key, value in record.items():
        if rows in value.shape:
            axis = value.shape.index(rows)
            selected[key] = value.index_select(axis, source)
            if f"{AXES[axis]}_0" in record:
                del selected[key]
    return selected


def adapt_state(
    state: State,
    params: Mapping[str, Tensor],
    known: Collection[Tensor],
    initial_records: Callable[..., Sequence[Record]],
    is_expected: bool,
) -> None:
    """Starts anew what does not fit a new rule; warns of it unless it is expected.

    params: by name. known: those whose state was not moved to them. initial_records:
    of the rule; see `BoundParameters.initial_records`.
    """
    values, expected = {}, initial_records()
    for i, p in enumerate(params.values()):
        record = state.get(p)
        if record and not (p in known and fits(record, expected[i])):
            values[i] = real(local(p))
    initial = initial_records(values)
    changed = []
    for i, (name, p) in enumerate(params.items()):
        if i in values:
            old, state[p] = state[p], carried_over(state[p], initial[i])
            if any(value is not old.get(key) for key, value in state[p].items()):
                changed.append(name)
    if changed and not is_expected:
        warn(
            f"parameters have changed, and the state of {', '.join(changed)} no longer "
            "fits; what does not starts anew. To cut or copy rows of a parameter, use "
            "optimizer.select_rows(parameter, new, keep)."
        )


def carried_over(record: Record, initial: Record) -> Record:
    """The initial state of a parameter, with what fits of a record.

    Second moments that do not fit start at their mean. A record without its scalars, or
    with zeros in their place, is of no use.
    """
    carried = ParameterState(initial)
    scalars = {key: value for key, value in initial.items() if value.dim() == 0}
    if not fits(record, scalars) or float(record.get("path", 1)) == 0:
        return carried
    for key, value in initial.items():
        old: Any = record.get(key)
        if fits(record, {key: value}):
            carried[key] = old
        elif key.startswith("exp_avg_sq") and getattr(old, "ndim", 0) == value.ndim:
            axes = [i for i, n in enumerate(old.shape) if n != value.shape[i]]
            carried[key] = value + old.mean(axes, keepdim=True)
    return carried


def fits(record: Record, expected: Record) -> bool:
    """Whether a record has tensors in the expected shapes."""
    shapes = {key: getattr(value, "shape", None) for key, value in record.items()}
    return all(shapes.get(key) == like.shape for key, like in expected.items())
