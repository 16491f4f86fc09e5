"""What one step knows of all parameters before any is updated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ngopt.base.arrays import Array, array, array_like, on
from ngopt.base.flat import Flat, Number
from ngopt.base.joined import Joined
from ngopt.functional import Record


class Shared(NamedTuple):
    """What the elements of a parameter share in one step.

    recall: of what the state holds so far; see `Measured`. None if it stays as it is.
    multiplier: of the gradient. momentum, second, factor: weights of what is new in momentum, second
        moments and factors; all 0 where the step is left out. Direction is rotated momentum /
        sqrt(shrink * second + damping): with both corrections.
    size: of the step, with all its factors. decay: share of the weights that decays. newest: weight
        of the new weights in their average. is_finite: all gradients are known to be finite.
    """

    recall: Number | None
    multiplier: Number
    momentum: Number
    second: Number
    shrink: Number
    damping: Number
    factor: Number
    size: Number
    decay: Number
    newest: Number
    is_finite: bool


class Task(NamedTuple):
    """One parameter in one step.

    step: gradients before this one. is_due: whether its bases are renewed, after they were used.
    """

    record: Record
    step: int
    is_due: bool = False


def shared(numbers: Array, like: Tensor, has_recall: bool) -> Shared:
    """Rows of numbers (10, n) in the dtype and on the device of a state."""
    if isinstance(numbers, np.ndarray):
        found: list[Number] = numbers[:, 0].tolist()
        (varied,) = (numbers != numbers[:, :1]).any(1).nonzero()
        rows = torch.from_numpy(numbers[varied]).to(like).unbind()
        for i, row in zip(varied.tolist(), rows, strict=True):
            found[i] = row
    else:
        found = list(numbers.to(like).squeeze(1).unbind())
    momentum = numbers[Shared._fields.index("momentum")]
    is_finite = isinstance(numbers, np.ndarray) and bool(momentum.all())
    recall, *others, newest = found
    # as a number it would be compiled into `lerp`, anew for every step
    newest = torch.as_tensor(newest, dtype=like.dtype, device=like.device)
    return Shared._make([recall if has_recall else None, *others, newest, is_finite])


class Scalars:
    """Scalars of records, those of one device together.

    keys: of the scalars. devices: of the records.
    """

    def __init__(self, keys: Sequence[str], devices: Sequence[torch.device]):
        self._members: dict[torch.device, tuple[list[int], Joined]] = {}
        for device in dict.fromkeys(devices):
            some = [j for j, own in enumerate(devices) if own == device]
            places = [(j, key) for key in keys for j in some]
            joined = Joined(places, Flat([()] * len(places)), (len(keys), len(some)))
            self._members[device] = some, joined
        order = [j for some, _ in self._members.values() for j in some]
        self._order = torch.tensor(order).argsort()

    def open(self, records: Sequence[Record], in_place: bool) -> Tensor:
        """(keys, n), on the device of the first."""
        found = [joined.open(records, in_place) for _, joined in self._members.values()]
        if len(found) == 1:
            return found[0]
        device = found[0].device
        return torch.cat([some.to(device) for some in found], 1)[:, self._order.to(device)]

    def close(self, records: Sequence[Record], rows: Tensor, in_place: bool) -> None:
        """Puts new values (keys, n) into records."""
        for device, (some, joined) in self._members.items():
            own = rows if len(self._members) == 1 else rows[:, some]
            joined.close(records, on(own, device), in_place)


Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Marks work on the host that differs from step to step: `torch.compile` leaves it out."""
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def of_each(steps: Sequence[int], number: Callable[[int], Value]) -> list[Value]:
    """What belongs to each of some steps; most parameters are at the same."""
    found = {step: number(step) for step in set(steps)}
    return [found[step] for step in steps]


def vector(values: Sequence[float | Tensor], like: Array) -> Array:
    """Numbers, some of them perhaps tensors, as an array."""
    plain = [value for value in values if not isinstance(value, Tensor)]
    if len(plain) == len(values):
        return array_like(plain, like)
    found = torch.stack([torch.as_tensor(value) for value in values])
    return found.to(like) if isinstance(like, Tensor) else array(found)


def converted(values: Tensor, like: Array) -> Array:
    """Values as an array of the same kind, in its precision."""
    if isinstance(like, np.ndarray):
        return array(values.double())
    return on(values, like.device).to(like.dtype)


class Step(NamedTuple):
    """What one step knows of the parameters that have a gradient, in the order of its plan.

    tasks: with the old records. records: the new ones. active: 0 where the step is left out.
    numbers: of each batch. decays: whether any weights do. now: steps of the training before this
    one.
    """

    positions: Sequence[int]
    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    tasks: Sequence[Task]
    records: Sequence[Record]
    active: Array
    numbers: Sequence[Shared]
    decays: bool
    now: int
    in_place: bool
