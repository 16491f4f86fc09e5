"""Parameters while a network is traced: which of their elements lies where in a tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ngopt.graph.core import View


@dataclass(frozen=True)
class Elements:
    """A tensor whose entries are elements of one parameter, each perhaps times or plus a constant.

    layout: a tensor without data whose strides and offset say which element lies where, as long as
    only views were taken; else the numbers of the elements themselves, int64. also: other parameters
    of which the entries are made too, each in the same shape (the norms of weight normalisation).
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
        numbers = torch.tensor(self.layout.storage_offset())
        for dim, (size, stride) in enumerate(zip(self.layout.shape, self.layout.stride(), strict=True)):
            shape = [1] * self.layout.dim()
            shape[dim] = size
            numbers = numbers + (torch.arange(size) * stride).reshape(shape)
        return numbers.expand(self.layout.shape)

    def move(self, function: Any, args: tuple, kwargs: dict) -> Elements:
        """The elements after a function that only moves entries; `args` hold self where the tensor goes."""
        if self.also:
            others = (o.move(function, tuple(o if a is self else a for a in args), kwargs) for o in self.also)
            alone = replace(self, also=())
            return replace(
                alone.move(function, tuple(alone if a is self else a for a in args), kwargs), also=tuple(others)
            )

        def moved(tensor: Tensor) -> Tensor:
            return function(*(tensor if a is self else a for a in args), **kwargs)

        if self.layout.is_meta:
            storage = self.layout.untyped_storage()
            result = moved(self.layout)
            if result.untyped_storage()._cdata == storage._cdata:
                return replace(self, layout=result)
        return replace(self, layout=moved(self.numbers))

    def accompanied(self, others: Iterable[Elements]) -> Elements:
        """The same with other parameters at its side; see `also`."""
        return replace(self, also=(*self.also, *others))

    def view(self) -> View | None:
        """The strided view that the tensor is, None if it is none or has an element twice."""
        layout = self.layout if self.layout.is_meta else None
        if layout is not None:
            strides, offset = layout.stride(), int(layout.storage_offset())
        else:
            found = affine(self.layout)
            if found is None:
                return None
            strides, offset = found
        strides = tuple(s if n > 1 else 0 for s, n in zip(strides, self.shape, strict=True))
        if any(n > 1 and s == 0 for n, s in zip(self.shape, strides, strict=True)):
            return None
        return View(self.parameter, tuple(self.shape), strides, offset)


def affine(numbers: Tensor) -> tuple[tuple[int, ...], int] | None:
    """Strides and offset of which the numbers are made, None if they are not."""
    if not numbers.numel():
        return None
    offset = int(numbers.flatten()[0])
    origin = [0] * numbers.dim()
    strides = []
    for dim, size in enumerate(numbers.shape):
        step = list(origin)
        step[dim] = 1 if size > 1 else 0
        strides.append(int(numbers[tuple(step)]) - offset)
    expected = torch.tensor(offset)
    for dim, (size, stride) in enumerate(zip(numbers.shape, strides, strict=True)):
        shape = [1] * numbers.dim()
        shape[dim] = size
        expected = expected + (torch.arange(size) * stride).reshape(shape)
    if any(s < 0 for s in strides) or not torch.equal(expected.expand(numbers.shape), numbers):
        return None
    return tuple(strides), offset
