"""A network that is data: what the tasks of this package read, edit and judge."""

from __future__ import annotations

from torch import Tensor, nn


class Subject(nn.Module):
    """Base class. A subclass has `example` and `neurons`; parameters alone decide what
    it computes.

    frequency: sine neurons compute sin(frequency * x). output:
    which group of neurons the module returns.
    """

    frequency = 1.0
    output = -1

    def example(self) -> Tensor:
        """An input, as the module takes it, (m, *)."""
        raise NotImplementedError

    def neurons(self, x: Tensor) -> list[Tensor | None]:
        """What the neurons of every group of the graph say, in the graph's order: (m,
        size,
        *space) each.

        The first are the inputs as they are. None for nodes that stand for others
        together (groups of a GroupNorm) or for pairs of neurons (products of queries
        and keys), so that the graph, which is traced through here, is that of the
        network alone.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        output = self.neurons(x)[self.output]
        assert output is not None
        return output
