"""A network that is data: what the tasks of this package read, edit and judge."""

from __future__ import annotations

from torch import Tensor, nn


class InputNetwork(nn.Module):
    """Base class. A subclass has `example_input` and `group_activations`; parameters alone decide what
    it computes.

    frequency: sine neurons compute sin(frequency * x). output_group:
    which group of neurons the module returns.
    """

    frequency = 1.0
    output_group = -1

    def example_input(self) -> Tensor:
        """An input, as the module takes it, (m, *)."""
        raise NotImplementedError

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
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
        output = self.group_activations(x)[self.output_group]
        assert output is not None
        return output
