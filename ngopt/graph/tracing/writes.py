"""What functions write in place, as everything that shares memory with their operand shows it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.tracing.elements import strided_numbers
from ngopt.graph.tracing.values import Neurons, Unknown, Value, constant_labels, folded


class Memory:
    """Which tensors share memory, so that what is written to one is written to others.

    values: what each tensor stands for. Constants are tensors whose own memory is written.
    """

    def __init__(self, values: dict[Node, Value]):
        self.values = values
        self._sharing: dict[int, list[Node]] = defaultdict(list)

    def add(self, node: Node) -> None:
        """Notes down where the result of a function lies, and what the function writes."""
        tensor = node.meta.get("val")
        if not isinstance(tensor, Tensor):
            return
        if _writes(node):
            self._write(node)
        sharing = self._sharing[_storage(tensor)]
        sharing.append(node)

    def _write(self, call: Node) -> None:
        operand: Any = call.args[0]
        result = self.values[call]
        if not isinstance(result, (Neurons, Unknown)):
            return
        tensor = operand.meta["val"]
        old = self.values[operand]
        self.values[operand] = result
        sharing = self._sharing[_storage(tensor)]
        others = [node for node in sharing if node is not operand]
        if not others or _are_same(old, result):
            return
        written = _Written.of(tensor, result)
        for node in others:
            own = node.meta["val"]
            self.values[node] = written.seen_in(own, self.values[node])


@dataclass(frozen=True)
class _Written:
    """labels: of what was written, 0 or less for no neuron; None where nothing is known of it.

    places: for every place in memory which of the labels is there, -1 for none.
    """

    labels: Tensor | None
    places: Tensor

    @classmethod
    def of(cls, tensor: Tensor, result: Neurons | Unknown) -> _Written:
        numbers = _numbers(tensor)
        count = numbers.numel()
        size = int(numbers.max()) + 1 if count else 0
        places = torch.full((size,), -1)
        places[numbers] = torch.arange(count).reshape(numbers.shape)
        labels = result.labels.flatten() if isinstance(result, Neurons) else None
        return cls(labels, places)

    def seen_in(self, tensor: Tensor, value: Value) -> Value:
        """What a tensor of the same memory stands for after this was written."""
        which = self._seen(_numbers(tensor))
        is_new = which >= 0
        if not is_new.any():
            return value
        old = _labels(value)
        is_lost = old is None and not is_new.all()
        if self.labels is None or is_lost:
            return Unknown(which.shape)
        # -1 would read the last one
        new = self.labels[which.clamp(min=0)]
        if old is not None:
            new = torch.where(is_new, new, old)
        return Neurons(folded(new))

    def _seen(self, numbers: Tensor) -> Tensor:
        """Which of the labels is at each place in memory, -1 for none."""
        if not len(self.places):
            return torch.full_like(numbers, -1)
        is_behind = numbers >= len(self.places)
        inside = numbers.masked_fill(is_behind, 0)
        return self.places[inside].masked_fill(is_behind, -1)


def _are_same(old: Value, new: Value) -> bool:
    """Whether neurons are what they were, as behind an activation."""
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


def _numbers(tensor: Tensor) -> Tensor:
    """Where in memory every entry of a tensor lies."""
    offset = int(tensor.storage_offset())
    return strided_numbers(tensor.shape, tensor.stride(), offset)
