"""What one step knows of all parameters before any is updated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.arrays import Array, array, array_like, columns
from ngopt.functional import Record


class Step(NamedTuple):
    """What one step knows of the parameters that have a gradient, in their order.

    present: their positions. steps: gradients before this one. active: 0 where the step is left out.
    recall: see `Measured`.
    numbers: of `step_numbers`, (6, n). sizes: of the step, with all its factors; of the share of the
        weights that decays; and of the share of their average that stays, (3, n).
    decays: whether any weights do. kept: scalars of the new records.
    """

    present: Sequence[int]
    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    records: Sequence[Record]
    steps: Sequence[int]
    active: Array
    recall: Array
    numbers: Tensor
    sizes: Tensor
    decays: bool
    kept: Sequence[Record]


def vector(values: Sequence[float | Tensor], like: Array) -> Array:
    """Numbers, some of them perhaps tensors, as an array."""
    plain = [value for value in values if not isinstance(value, Tensor)]
    if len(plain) == len(values):
        return array_like(plain, like)
    found = torch.stack([torch.as_tensor(value) for value in values])
    return found.to(like) if isinstance(like, Tensor) else array(found)


def scalars(records: Sequence[Record], like: Array) -> Array:
    """`scale`, `size` and `skipped` of all records, (3, n)."""
    device = like.device if isinstance(like, Tensor) else torch.device("cpu")
    keys = "scale", "size", "skipped"
    found = torch.stack([on(record[key], device) for key in keys for record in records])
    return array(found.view(len(keys), -1).to(columns([like]).dtype))


def kept_scalars(records: Sequence[Record], table: Tensor) -> list[Record]:
    """What new records hold beside the state of the direction: scalars, where the old ones are.

    table: `scale`, `size` and `skipped`, (3, n).
    """
    keys = "step", "scale", "size", "skipped"
    steps = torch.stack([record["step"] for record in records]) + 1
    rows = zip(steps.unbind(), *(row.unbind() for row in table.unbind()), strict=True)
    return [
        {key: on(value, record[key].device) for key, value in zip(keys, row, strict=True)}
        for record, row in zip(records, rows, strict=True)
    ]


def on(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; cheaper than `to` where it is there already."""
    return x if x.device == device else x.to(device)
