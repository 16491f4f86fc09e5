"""A network that is data: what the tasks of this package read, edit and judge."""

from __future__ import annotations

from torch import Tensor, nn


class Subject(nn.Module):
    """Base class. A subclass has `example`, `neurons` and, to be probed, `probes`.

    frequency: sine neurons compute sin(frequency * x).
    """

    frequency = 1.0

    def example(self) -> Tensor:
        """An input, as the module takes it, (m, *)."""
        raise NotImplementedError

    def neurons(self, x: Tensor) -> list[Tensor]:
        """What the neurons of every group of the graph say, in the graph's order: (m, size, *space) each.

        The first are the inputs as they are; the last is what the module returns.
        """
        raise NotImplementedError

    def probes(self, count: int) -> Tensor:
        """Random inputs with which learned ones may begin, (count, *)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.neurons(x)[-1]
