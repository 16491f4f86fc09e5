"""Parameters while a network is traced: which of their elements lies where in a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

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
        return cls(parameter, torch.empty(shape, device="meta"))

    @property
    def shape(self) -> torch.Size:
        return self.layout.shape

    @property
    def numbers(self) -> Tensor:
        """Flat number of the element at every place."""
        if not self.layout.is_meta:
            return self.layout
        offset = int(self.layout.storage_offset())
        return _numbers(self.shape, self.layout.stride(), offset)

    def apply(self, function: Callable[[Tensor], Tensor]) -> Elements:
        """The elements after a function that only moves entries."""
        also = tuple(other.apply(function) for other in self.also)
        if self.layout.is_meta:
            storage = self.layout.untyped_storage()
            result = function(self.layout)
            if result.untyped_storage()._cdata == storage._cdata:
                return Elements(self.parameter, result, also)
        return Elements(self.parameter, function(self.numbers), also)

    def accompanied(self, others: Iterable[Elements]) -> Elements:
        """The same with other parameters at its side; see `also`."""
        return replace(self, also=(*self.also, *others))

    def view(self) -> View | None:
        """The strided view that the tensor is, None if it is none or has an element twice."""
        if self.layout.is_meta:
            strides, offset = self.layout.stride(), int(self.layout.storage_offset())
        else:
            found = affine(self.layout)
            if found is None:
                return None
            strides, offset = found
        if any(n > 1 and s == 0 for n, s in zip(self.shape, strides, strict=True)):
            return None
        return View(self.parameter, tuple(self.shape), tuple(strides), offset)


def affine(numbers: Tensor) -> tuple[tuple[int, ...], int] | None:
    """Strides and offset of which the numbers are made, None if they are not."""
    if not numbers.numel():
        return None
    first = numbers[(0,) * numbers.dim()]
    strides = []
    for d, size in enumerate(numbers.shape):
        second = numbers.select(d, min(1, size - 1))
        strides.append(int(second[(0,) * second.dim()] - first))
    if min(strides, default=0) < 0:
        return None
    expected = _numbers(numbers.shape, strides, int(first))
    return (tuple(strides), int(first)) if torch.equal(expected, numbers) else None


def _numbers(shape: Sequence[int], strides: Sequence[int], offset: int) -> Tensor:
    """offset + sum of strides[d] * i[d], for every place i of a shape."""
    numbers = torch.tensor(offset)
    for d, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        behind = [1] * (len(shape) - 1 - d)
        numbers = numbers + (torch.arange(size) * stride).reshape(-1, *behind)
    return numbers.expand(tuple(shape))
