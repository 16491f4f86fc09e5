"""Stacks inner trainings of one network, to keep a GPU busy with small networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from meta_train.training.unroll import Buffers, Optimizee, Optimizees, to_device

State = TypeVar("State")


class Stack(Optimizees):
    """Optimizees of one problem as one: values have a leading axis of optimizees.

    Losses and gradients are those of the optimizees to rounding, except with dropout:
    one generator draws for all.

    Raises ValueError if the optimizees have different networks, or recurrent ones.
    """

    def __init__(self, optimizees: Sequence[Optimizee]):
        first = optimizees[0]
        expected = [p.shape for p in first.model.parameters()]
        for i, optimizee in enumerate(optimizees):
            shapes = [p.shape for p in optimizee.model.parameters()]
            if shapes != expected:
                raise ValueError(
                    f"Stack: optimizee {i}: expected parameters like those of the "
                    f"first, {expected}; got {shapes}"
                )
        for name, module in first.model.named_modules():
            if isinstance(module, nn.RNNBase):
                raise ValueError(
                    f"Stack: problem '{first.problem.name}': expected no recurrent "
                    f"layers, which vmap does not support; got '{name}'"
                )
        self.optimizees = optimizees
        self.count = (len(optimizees),)
        self.graph = first.graph
        self.names = first.names
        self._first = first

    def loss(
        self, params: list[Tensor], buffers: Buffers, step: int | Tensor
    ) -> tuple[Tensor, Buffers]:
        steps = torch.as_tensor(step).expand(self.count).tolist()
        batches = []
        for optimizee, own in zip(self.optimizees, steps, strict=True):
            batches.append(optimizee.host_batch(own))
        batch = to_device(stacked(batches), self._first.device)
        function = torch.vmap(self._first.loss_of, randomness="different")
        with self._first.randomness(steps[0]):
            return function(list(params), buffers, batch)

    def normal(self, step: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        rows = []
        for optimizee, own in zip(self.optimizees, step, strict=True):
            rows.append(optimizee.normal(own, size, dtype))
        return torch.stack(rows)


def stacked(states: Sequence[State]) -> State:
    """Stacks pytrees of tensors along a new first axis."""
    return tree_map(lambda *values: torch.stack(values), *states)


def unstacked(state: State, count: int) -> list[State]:
    """The inverse of `stacked`."""
    return [tree_map(lambda values, i=i: values[i], state) for i in range(count)]
