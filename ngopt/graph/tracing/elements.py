"""Parameters while a network is traced: which of their elements lies where in a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ngopt.graph.core import View


@dataclass(frozen=True)
class Elements:
    """A tensor whose entries are elements of one parameter, each perhaps times or plus a constant.

    layout: a tensor without data whose strides and offset say which element lies where, as long as
    only views were taken; else the numbers of the elements themselves, int64. also: other
    parameters of which the entries are made too, each in the same shape (the norms of weight
    normalisation).
    """

    parameter: int
    layout: Tensor
    also: tuple[Elements, ...] = ()

    @classmethod
    def whole(cls, parameter: int, shape: tuple[int, ...]) -> Elements:
        layout = torch.empty(shape, device="meta")  # strides and a storage, but no memory
        return cls(parameter, layout)

    @property
    def shape(self) -> torch.Size:
        return self.layout.shape

    @property
    def numbers(self) -> Tensor:
        """Flat number of the element at every place."""
        layout = self.layout
        if not layout.is_meta:
            return layout
        offset = int(layout.storage_offset())
        return strided_numbers(layout.shape, layout.stride(), offset)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Elements:
        """The elements after a function that only moves entries."""
        old = self.layout
        layout = function(old)
        # a copy, as of a reshaped transpose, has strides of its own, not in the parameter
        if old.is_meta and not _share_storage(layout, old):
            layout = function(self.numbers)
        also = tuple(other.apply(function) for other in self.also)
        return Elements(self.parameter, layout, also)

    def accompanied(self, others: Iterable[Elements]) -> Elements:
        """The same with other parameters at its side; see `also`."""
        also = (*self.also, *others)
        return replace(self, also=also)

    def view(self) -> View | None:
        """The strided view that the tensor is, None if it is none or has an element twice."""
        found = _strides_and_offset(self.layout)
        if found is None:
            return None
        strides, offset = found
        if _has_repeats(self.shape, strides):
            return None
        return View(self.parameter, tuple(self.shape), strides, offset)


def _share_storage(a: Tensor, b: Tensor) -> bool:
    # data_ptr is 0 for every tensor without data
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _has_repeats(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a strided tensor has an element twice, as expanded ones and windows that overlap."""
    axes = sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1)
    reach = 0
    for stride, size in axes:
        if stride <= reach:
            numbers = strided_numbers(shape, strides, 0)
            return len(numbers.unique()) < numbers.numel()
        reach += stride * (size - 1)
    return False


def _strides_and_offset(layout: Tensor) -> tuple[tuple[int, ...], int] | None:
    """Those of a tensor without data, or of which numbers are made; None if they are not."""
    if layout.is_meta:
        offset = int(layout.storage_offset())
        return layout.stride(), offset
    if not layout.numel():
        return None
    offset = int(along(layout))
    strides = []
    for d in range(layout.dim()):
        line = along(layout, d)
        # the first one itself where there is no other: stride 0
        second = int(line[:2][-1])
        strides.append(second - offset)
    # flipped: torch has no negative strides
    if min(strides, default=0) < 0:
        return None
    # the edges of a tensor may be even where its inside is not
    expected = strided_numbers(layout.shape, strides, offset)
    if not torch.equal(expected, layout):
        return None
    return tuple(strides), offset


def along(numbers: Tensor, *dims: int) -> Tensor:
    """Numbers along some dimensions, at the first place of all others."""
    index: list[Any] = [0] * numbers.dim()
    for d in dims:
        index[d] = slice(None)
    return numbers[tuple(index)]


def strided_numbers(shape: Sequence[int], strides: Sequence[int], offset: int) -> Tensor:
    """offset + sum of strides[d] * i[d], for every place i of a shape."""
    numbers = torch.tensor(offset)
    for size, stride in zip(shape, strides, strict=True):
        steps = torch.arange(size) * stride
        numbers = numbers[..., None] + steps
    return numbers
