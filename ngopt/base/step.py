"""What one step knows of all parameters before any is updated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ngopt.base.arrays import Array, array, array_like, as_tensor, gathered, on, stacked
from ngopt.functional import Record


class Shared(NamedTuple):
    """What the elements of a parameter share in one step, for n parameters.

    Each (n,), or () where it is one number for all.

    multiplier: of the gradient. momentum, second, factor: weights of what is new in momentum, second
        moments and factors; all 0 where the step is left out. Direction is rotated momentum /
        sqrt(shrink * second + damping): with both corrections.
    size: of the step, with all its factors. decay: share of the weights that decays. stays: share
        of their average that does.
    """

    multiplier: Tensor
    momentum: Tensor
    second: Tensor
    shrink: Tensor
    damping: Tensor
    factor: Tensor
    size: Tensor
    decay: Tensor
    stays: Tensor


class Step(NamedTuple):
    """What one step knows of the parameters that have a gradient, in their order.

    present: their positions. steps: gradients before this one. active: 0 where the step is left out.
    recall: see `Measured`. numbers: the fields of `Shared`, (9, n). decays: whether any weights do.
    kept: scalars of the new records.
    """

    present: Sequence[int]
    grads: Sequence[Tensor]
    params: Sequence[Tensor]
    records: Sequence[Record]
    steps: Sequence[int]
    active: Array
    recall: Array
    numbers: Array
    decays: bool
    kept: Sequence[Record]


def shared(numbers: Array, index: Tensor, like: Tensor) -> Shared:
    """Those of the parameters of an index, in the dtype and on the device of their state."""
    if isinstance(numbers, np.ndarray):
        numbers = numbers[:, index.numpy()]
        alike = (numbers == numbers[:, :1]).all(1).tolist()
        rows = torch.from_numpy(numbers).to(like).unbind()
    else:
        numbers = numbers.index_select(1, on(index, numbers.device))
        alike = [len(index) == 1] * len(numbers)
        rows = numbers.to(like).unbind()
    return Shared(*(row[0] if same else row for row, same in zip(rows, alike, strict=True)))


Number = TypeVar("Number")


def of_each(steps: Sequence[int], number: Callable[[int], Number]) -> list[Number]:
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


def scalars(records: Sequence[Record], like: Array) -> Array:
    """`scale`, `size` and `skipped` of all records, (3, n)."""
    device = like.device if isinstance(like, Tensor) else torch.device("cpu")
    keys = "scale", "size", "skipped"
    found = gathered([record[key] for key in keys for record in records], device)
    found = found if isinstance(like, np.ndarray) else found.to(like.dtype)
    return found.reshape(len(keys), -1)


def kept_scalars(records: Sequence[Record], rows: Sequence[Array]) -> list[Record]:
    """What new records hold beside the state of the direction: scalars, where the old ones are.

    rows: `step`, `scale`, `size` and `skipped`, (n,) each.
    """
    keys = "step", "scale", "size", "skipped"
    values = iter(as_tensor(stacked(rows)).T.float().flatten().unbind())
    return [{key: on(next(values), record[key].device) for key in keys} for record in records]
