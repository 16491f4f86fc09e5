"""The states of a graph's edges between the layers of a graph network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.metanets.graph_data.graph_tensors import (
    BlockTensors,
    EdgeChunk,
    GraphTensors,
)

EdgeStep = Callable[[Tensor | None, BlockTensors, EdgeChunk], Tensor]
"""The states of a part after a step, from those before; None before the first."""


class EdgeStates:
    """The states of all edges, part by part: those of a first state, after some steps.

    They are kept where `keep` says so, and else computed from the beginning whenever
    they are asked for, so that only those of one part are in memory.
    """

    def __init__(self, blocks: Sequence[BlockTensors], first: EdgeStep, keep: bool):
        self.blocks, self.keep = blocks, keep
        self._steps: list[EdgeStep] = [first]
        self._kept: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def then(self, step: EdgeStep) -> None:
        """Adds a step."""
        self._steps.append(step)

    def of(self, parts: BlockTensors, number: int) -> Tensor:
        """The states of one part after all steps so far."""
        key = parts.number, number
        done, state = self._kept.get(key, (0, None))
        for step in self._steps[done:]:
            state = step(state, parts, parts.parts[number])
        assert state is not None
        if self.keep:
            self._kept[key] = len(self._steps), state
        return state


def are_kept(parts: GraphTensors, width: int, like: Tensor) -> bool:
    """Whether states of so many features of `like`'s dtype may be kept;
    autograd keeps them anyway."""
    most = chunking.amount(chunking.KEPT, like.device)
    is_small = like.itemsize * width * parts.edges <= most
    return is_small or torch.is_grad_enabled()
