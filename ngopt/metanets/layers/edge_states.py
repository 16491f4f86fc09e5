"""The states of a graph's edges between the layers of a graph network."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ngopt import chunking
from ngopt.metanets.graph_data.graph_tensors import (
    BlockTensors,
    EdgeChunk,
    GraphTensors,
)

EdgeStep = Callable[[Tensor | None, EdgeChunk], Tensor]
"""States of a chunk before a step -> after it; None before the first."""


class EdgeStates:
    """The states of all edges after some steps, chunk by chunk.

    keep: whether states are stored. Else each `of` computes them from the first step,
    so that only those of one chunk are in memory.
    """

    def __init__(self, blocks: Sequence[BlockTensors], first: EdgeStep, keep: bool):
        self.blocks = blocks
        self.keep = keep
        self._steps: list[EdgeStep] = [first]
        self._stored: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def then(self, step: EdgeStep) -> None:
        """Adds a step."""
        self._steps.append(step)

    def of(self, chunk: EdgeChunk) -> Tensor:
        """The states of a chunk after all steps so far."""
        key = chunk.block, chunk.number
        done, state = self._stored.get(key, (0, None))
        for step in self._steps[done:]:
            state = step(state, chunk)
        assert state is not None
        if self.keep:
            self._stored[key] = len(self._steps), state
        return state


def fits_in_memory(tensors: GraphTensors, width: int, like: Tensor) -> bool:
    """Whether edge states of `width` features in `like`'s dtype may be stored; autograd
    stores them anyway."""
    limit = chunking.chunk_size(chunking.CACHED_BYTES, like.device)
    is_small = like.itemsize * width * tensors.edges <= limit
    return is_small or torch.is_grad_enabled()
