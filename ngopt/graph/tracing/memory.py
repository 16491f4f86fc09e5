"""Tensors that share memory: what is written to one is written to the others."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    constant_labels,
    storage_of,
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
        sharing = self._sharing[storage_of(tensor)]
        sharing.append(call)

    def _write(self, call: Node) -> None:
        operand: Any = call.args[0]
        result = self.values[call]
        if not isinstance(result, (Neurons, Unknown)):
            return
        tensor = operand.meta["val"]
        old = self.values[operand]
        self.values[operand] = result
        sharing = self._sharing[storage_of(tensor)]
        others = [other for other in sharing if other is not operand]
        if not others or _are_same(old, result):
            return
        written = _places(tensor)
        for other in others:
            places = _places(other.meta["val"])
            value = self.values[other]
            self.values[other] = _after_write(value, places, written, result)


def _after_write(
    value: Value, places: Tensor, written: Tensor, result: Neurons | Unknown
) -> Value:
    """The value of a tensor after a write to other places of its memory.

    places, written: the place in memory of every entry of both tensors.
    """
    if not places.numel() or not written.numel():
        return value
    size = 1 + int(max(places.max(), written.max()))
    is_written = torch.zeros(size, dtype=torch.bool)
    is_written[written] = True
    is_new = is_written[places]
    if not is_new.any():
        return value
    old = _labels(value)
    is_unknown = old is None and not is_new.all()
    if isinstance(result, Unknown) or is_unknown:
        return Unknown(places.shape)
    memory = torch.empty(size, dtype=torch.long)
    memory[written] = result.labels.reshape(written.shape)
    new = memory[places]
    if old is not None:
        new = torch.where(is_new, new, old)
    return Neurons(with_zero_strides(new))


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


def _places(tensor: Tensor) -> Tensor:
    """The place in memory of every entry of a tensor."""
    offset = int(tensor.storage_offset())
    return strided_numbers(tensor.shape, tensor.stride(), offset)
