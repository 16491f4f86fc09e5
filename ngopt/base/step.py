"""What one step knows of all parameters before any is updated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.arrays import Column, as_tensor, on
from ngopt.base.flat import Flat, Number
from ngopt.base.joined import Held, Joined
from ngopt.functional import Record


class Shared(NamedTuple):
    """What the elements of a parameter share in one step.

    recall: of what the state holds so far; see `Measured`. None if it stays as it is.
    multiplier: of the gradient. momentum, second: weights of what is new in momentum and second
        moments; 0 where the step is left out, as is `active`, elsewhere 1. Direction is rotated
        momentum / sqrt(shrink * second + damping): with both corrections.
    size: of the step, with all its factors, below 0. decay: share of the weights that decays.
        newest: weight of the new weights in their average, if there is one. is_finite: all
        gradients are known to be finite.
    """

    recall: Number | None
    multiplier: Number
    momentum: Number
    second: Number
    shrink: Number
    damping: Number
    active: Number
    size: Number
    decay: Number
    newest: Number | None
    is_finite: bool


NUMBERS = Shared._fields[:-1]


class Turn(NamedTuple):
    """One parameter in one step.

    is_first: whether there was no gradient before. is_due: whether its bases are renewed, after
    they were used; in a compiled step a tensor () on the host.
    """

    record: Record
    is_first: bool
    is_due: bool | Tensor = False


def shared(
    found: Sequence[Column], some: slice, like: Tensor, has_recall: bool
) -> Shared:
    """The numbers of some parameters, of columns of all, in the dtype and on the device of a state.

    found: the fields of `Shared` but for the last; without `newest` where nothing is averaged.
    """
    own = [values[some] for values in found]
    active = own[NUMBERS.index("active")]
    is_finite = not isinstance(active, Tensor) and all(active)
    recall, *numbers = _compact(own, like)
    newest = numbers.pop() if len(found) == len(NUMBERS) else None
    return Shared._make(
        [recall if has_recall else None, *numbers, newest, is_finite]
    )


def _compact(found: Sequence[Column], like: Tensor) -> list[Number]:
    """Columns as numbers where they are the same for all, else as tensors."""
    if isinstance(found[0], Tensor):
        return list(as_tensor(found, like).squeeze(1).unbind())
    is_varied = [len(set(values)) > 1 for values in found]
    varied = list(compress(found, is_varied))
    rows = iter(as_tensor(varied, like).unbind() if varied else ())
    return [
        next(rows) if varies else values[0]
        for values, varies in zip(found, is_varied, strict=True)
    ]


class Scalars:
    """Scalars of records, those of one device together.

    keys: of the scalars. devices: of the records.
    """

    def __init__(self, keys: Sequence[str], devices: Sequence[torch.device]):
        self._members: dict[torch.device, tuple[list[int], Held]] = {}
        for device in dict.fromkeys(devices):
            some = [j for j, own in enumerate(devices) if own == device]
            places = [(j, key) for key in keys for j in some]
            joined = Joined(
                places, Flat([()] * len(places)), (len(keys), len(some))
            )
            self._members[device] = some, Held([joined])
        order = [j for some, _ in self._members.values() for j in some]
        self._order = torch.tensor(order, device="cpu").argsort()

    def open(self, records: Sequence[Record], in_place: bool) -> Tensor:
        """(keys, n), on the device of the first."""
        found = [
            held.open(records, in_place)[0]
            for _, held in self._members.values()
        ]
        if len(found) == 1:
            return found[0]
        device = found[0].device
        joined = torch.cat([some.to(device) for some in found], 1)
        return joined[:, self._order.to(device)]

    def are_open(self, records: Sequence[Record]) -> bool:
        """See `Held.are_open`."""
        return all(held.are_open(records) for _, held in self._members.values())

    def close(
        self, records: Sequence[Record], rows: Tensor, in_place: bool
    ) -> None:
        """Puts new values (keys, n) into records."""
        for device, (some, held) in self._members.items():
            own = rows if len(self._members) == 1 else rows[:, some]
            held.close(records, [on(own, device)], in_place)


class Step(NamedTuple):
    """What one step knows of the parameters that have a gradient, in the order of its plan.

    turns: with the old records. records: the new ones. active: 0 where the step is left out.
    numbers: of each batch. now: steps of the training before this one; in a compiled step a tensor
    ().
    """

    positions: Sequence[int]
    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    turns: Sequence[Turn]
    records: Sequence[Record]
    active: Column
    numbers: Sequence[Shared]
    now: int | Tensor
    in_place: bool
