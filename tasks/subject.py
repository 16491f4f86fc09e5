"""A network that is data: what the tasks of this package read, edit and judge."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Subject(nn.Module):
    """Base class. A subclass has `example` and `neurons`, and parameters alone decide what it computes.

    frequency: sine neurons compute sin(frequency * x). output: which group of neurons the module returns.
    """

    frequency = 1.0
    output = -1

    def example(self) -> Tensor:
        """An input, as the module takes it, (m, *)."""
        raise NotImplementedError

    def neurons(self, x: Tensor) -> list[Tensor | None]:
        """What the neurons of every group of the graph say, in the graph's order: (m, size, *space) each.

        The first are the inputs as they are. None for nodes that stand for others together (groups of a
        GroupNorm) or for pairs of neurons (products of queries and keys), so that the graph, which is
        traced through here, is that of the network alone.
        """
        raise NotImplementedError

    def probes(self, count: int) -> Tensor:
        """Random inputs with which learned ones may begin, (count, *) between -1 and 1."""
        return 2 * torch.rand(count, *self.example().shape[1:]) - 1

    def forward(self, x: Tensor) -> Tensor:
        output = self.neurons(x)[self.output]
        assert output is not None
        return output


class DropNeurons(nn.Module):
    """Dropout of whole neurons, with all their places (Tompson et al. 2015, section 3.2): few numbers are drawn.

    share: of the neurons. axis: theirs.
    """

    def __init__(self, share: float, axis: int):
        super().__init__()
        self.share, self.axis = share, axis

    def forward(self, x: Tensor) -> Tensor:
        """(m, *), in training with zeros for some neurons of every input and the others scaled up."""
        if not self.training or not self.share:
            return x
        shape = [len(x), *[1] * (x.dim() - 1)]
        shape[self.axis] = x.shape[self.axis]
        kept = torch.rand(shape, device=x.device) >= self.share
        return x * (kept / (1 - self.share))
