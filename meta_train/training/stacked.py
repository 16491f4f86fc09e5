"""Several inner trainings on one network as one, so that small networks keep a GPU
busy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from meta_train.training.unroll import Buffers, Optimizee, Optimizees, sent

State = TypeVar("State")


class Stack(Optimizees):
    """Optimizees of one problem as one: every value has an axis of optimizees in front.

    Losses and gradients are those of the optimizees to rounding, but for networks with
    dropout: one generator draws for all.

    Raises ValueError if the optimizees have different networks, or recurrent ones.
    """

    def __init__(self, optimizees: Sequence[Optimizee]):
        first = optimizees[0]
        shapes = [
            [p.shape for p in optimizee.model.parameters()] for optimizee in optimizees
        ]
        odd = next((i for i, own in enumerate(shapes) if own != shapes[0]), None)
        if odd is not None:
            raise ValueError(
                f"Stack: optimizee {odd}: expected parameters like those of the first, "
                f"{shapes[0]}; got {shapes[odd]}"
            )
        recurrent = [
            name
            for name, module in first.model.named_modules()
            if isinstance(module, nn.RNNBase)
        ]
        if recurrent:
            raise ValueError(
                f"Stack: problem '{first.problem.name}': expected a network without recurrent "
                f"layers, which vmap does not know; got '{recurrent[0]}'"
            )
        self.optimizees, self.count = optimizees, (len(optimizees),)
        self.graph, self.names, self._first = first.graph, first.names, first
        like = next(first.model.parameters())
        rows = zip(*(optimizee.scales for optimizee in optimizees), strict=True)
        # a factor of 1 for all stays what nothing is multiplied by
        self._scales = [
            1.0 if set(row) == {1.0} else like.new_tensor(row) for row in rows
        ]

    def loss(
        self, params: list[Tensor], buffers: Buffers, step: int | Tensor
    ) -> tuple[Tensor, Buffers]:
        steps = torch.as_tensor(step).expand(self.count).tolist()
        batches = [
            optimizee.host_batch(own)
            for optimizee, own in zip(self.optimizees, steps, strict=True)
        ]
        batch = sent(stacked(batches), self._first.device)
        axes = [None if isinstance(scale, float) else 0 for scale in self._scales]
        function = torch.vmap(
            self._first.loss_of, (0, 0, axes, 0), randomness="different"
        )
        with self._first.randomness(steps[0]):
            return function(list(params), buffers, self._scales, batch)

    def normal(self, step: Tensor, size: int, dtype: torch.dtype) -> Tensor:
        rows = zip(self.optimizees, step, strict=True)
        return torch.stack(
            [optimizee.normal(own, size, dtype) for optimizee, own in rows]
        )


def stacked(states: Sequence[State]) -> State:
    """Pytrees of tensors as one, with an axis of them in front."""
    return tree_map(lambda *values: torch.stack(values), *states)


def unstacked(state: State, count: int) -> list[State]:
    """The inverse of `stacked`."""
    return [tree_map(lambda values, i=i: values[i], state) for i in range(count)]
