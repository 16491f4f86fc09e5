"""Base class of input networks: networks whose parameters are the data of the tasks."""

from typing import Any

from torch import Tensor, nn


class InputNetwork(nn.Module):
    """A subclass implements `example_input` and `group_activations`.

    Its parameters alone determine its function, since its graph has nothing else.

    frequency: sine neurons compute sin(frequency * x).
    output_group: index of the neuron group that `forward` returns.
    """

    frequency = 1.0
    output_group = -1

    def example_input(self) -> Tensor:
        """An input of the module, (m, *)."""
        raise NotImplementedError

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """Activations of every neuron group, in the graph's order.

        Shapes: x (m, *) -> (m, size, *space) each; the first is x itself.

        None for nodes that stand for several neurons together: groups of a GroupNorm,
        products of queries and keys. The graph is traced through this method.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, every_group: bool = False) -> Any:
        """The outputs, (m, *); with `every_group` the result of `group_activations`."""
        activations = self.group_activations(x)
        return activations if every_group else activations[self.output_group]
