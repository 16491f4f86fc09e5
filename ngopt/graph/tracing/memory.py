"""Tensors that share memory: what is written to one is written to the others."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    constant_labels,
    strided_numbers,
    with_zero_strides,
)


class Memory:
    """Updates the values of tensors that share memory with a tensor that is written.

    values: of the results of functions. Constants are tensors whose own memory is
    written.
    """

    def __init__(self, values: dict[Node, Value]):
        self.values = values
        self._sharing: dict[int, list[Node]] = defaultdict(list)

    def add(self, call: Node) -> None:
        """Records the memory of a function's result, and applies its write, if any."""
        tensor = call.meta.get("val")
        if not isinstance(tensor, Tensor):
            return
        if _writes(call):
            self._write(call)
        sharing = self._sharing[_storage(tensor)]
        sharing.append(call)

    def _write(self, call: Node) -> None:
        operand: Any = call.args[0]
        result = self.values[call]
        if not isinstance(result, (Neurons, Unknown)):
            return
        tensor = operand.meta["val"]
        old = self.values[operand]
        self.values[operand] = result
        sharing = self._sharing[_storage(tensor)]
        others = [other for other in sharing if other is not operand]
        if not others or _are_same(old, result):
            return
        written = _Written.of(tensor, result)
        for other in others:
            own = other.meta["val"]
            self.values[other] = written.value_of(own, self.values[other])


@dataclass(frozen=True)
class _Written:
    """A write to memory.

    labels: of what was written; None if unknown. index: for every place in memory which
    of the labels is there, -1 for none.
    """

    labels: Tensor | None
    index: Tensor

    @classmethod
    def of(cls, tensor: Tensor, result: Neurons | Unknown) -> _Written:
        places = _places(tensor)
        count = places.numel()
        size = int(places.max()) + 1 if count else 0
        index = torch.full((size,), -1)
        index[places] = torch.arange(count).reshape(places.shape)
        labels = result.labels.flatten() if isinstance(result, Neurons) else None
        return cls(labels, index)

    def value_of(self, tensor: Tensor, value: Value) -> Value:
        """The value of a tensor of the same memory after the write, of that before."""
        which = self._read(_places(tensor))
        is_new = which >= 0
        if not is_new.any():
            return value
        old = _labels(value)
        is_unknown = old is None and not is_new.all()
        if self.labels is None or is_unknown:
            return Unknown(which.shape)
        # -1 would read the last one
        new = self.labels[which.clamp(min=0)]
        if old is not None:
            new = torch.where(is_new, new, old)
        return Neurons(with_zero_strides(new))

    def _read(self, places: Tensor) -> Tensor:
        """Which of the labels is at each place in memory, -1 for none."""
        if not len(self.index):
            return torch.full_like(places, -1)
        is_behind = places >= len(self.index)
        inside = places.masked_fill(is_behind, 0)
        return self.index[inside].masked_fill(is_behind, -1)


def _are_same(old: Value, new: Value) -> bool:
    """Whether neurons stay the same, as behind an activation."""
    if not isinstance(old, Neurons) or not isinstance(new, Neurons):
        return False
    return torch.equal(old.labels, new.labels)


def _labels(value: Value) -> Tensor | None:
    if isinstance(value, Tensor):
        return constant_labels(value)
    return value.labels if isinstance(value, Neurons) else None


def _writes(call: Node) -> bool:
    """Whether a function writes its first operand."""
    schema = getattr(call.target, "_schema", None)
    if schema is None or not schema.arguments or not isinstance(call.args[0], Node):
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _places(tensor: Tensor) -> Tensor:
    """The place in memory of every entry of a tensor."""
    offset = int(tensor.storage_offset())
    return strided_numbers(tensor.shape, tensor.stride(), offset)
