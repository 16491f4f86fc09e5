"""What the models of the tasks have in common: they read stacks of networks; some can
edit them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar
from warnings import filterwarnings

import torch
from torch import Tensor, nn

from ngopt.graph import ParameterSpec
from tasks.models.standardise import Standardise
from tasks.networks.architectures import Architecture, NetworkStack


def compile_steps(model: nn.Module) -> None:
    """Has the calls of a model compiled, anew for each shape."""
    # without their caches functions of shapes are traced just as well
    filterwarnings("ignore", "Dynamo detected a call to a `functools")
    model.compile(dynamic=False)


class NetworkModel(nn.Module):
    """Base class. A reader says something of each network, an editor how to change it.

    A subclass has `forward`, of readers, and where `can_edit` also `updates`, of
    editors.

    architectures: those of the training data. edits: whether it is an editor.

    Raises ValueError for an editor where this model can only read.
    """

    name: ClassVar[str]
    can_edit: ClassVar[bool] = False

    def __init__(self, architectures: Sequence[Architecture], edits: bool = False):
        super().__init__()
        if edits and not self.can_edit:
            raise ValueError(f"{self.name}: reads networks, but cannot edit them")
        if not architectures:
            raise ValueError(
                f"{self.name}: expected the architectures of its networks; got none"
            )
        self.edits = edits

    def fit(self, stacks: Iterable[NetworkStack]) -> None:
        """Takes from training data what no gradient learns: nothing, unless a subclass
        does."""

    def set_progress(self, share: float) -> int:
        """Before a step of a training, of which a share is over. Says which stage this
        is: there is one alone, unless a subclass learns its parts in turn."""
        return 0

    def chunks(self, stack: NetworkStack) -> list[NetworkStack]:
        """The same networks as steps that are compiled read them, piece by piece: all
        together, unless a subclass knows better."""
        return [stack]

    def forward(self, stack: NetworkStack) -> Tensor:
        """What a reader says of b networks, (b, d_out)."""
        raise NotImplementedError

    def forward_mixed(self, stacks: Sequence[NetworkStack]) -> Tensor:
        """What a reader says of networks of several architectures, one stack after the
        other."""
        return torch.cat([self.forward(stack) for stack in stacks])

    def updates(self, stack: NetworkStack) -> list[Tensor]:
        """What an editor adds to b networks, of every parameter (b, d_out, *shape)."""
        raise NotImplementedError


class ParameterModel(NetworkModel):
    """Base class of models that see parameters, standardised by statistics of the
    training data.

    single_architecture: whether all networks must be the same but for parameters and activations.

    Raises ValueError for several architectures where they must.
    """

    single_architecture: ClassVar[bool] = False

    def __init__(self, architectures: Sequence[Architecture], edits: bool = False):
        super().__init__(architectures, edits)
        self.first = architectures[0]
        if self.single_architecture:
            for other in architectures:
                self._check(other)
        has_one = all(other.names == self.first.names for other in architectures)
        self.standardise = Standardise(self.first if has_one else None)

    def fit(self, stacks: Iterable[NetworkStack]) -> None:
        """Takes the statistics from training data."""
        self.standardise.fit(stacks)

    def standardised(self, stack: NetworkStack) -> list[Tensor]:
        """Standardised parameters, (b, *shape) each.

        Raises ValueError for networks of an architecture that the model is not tied to.
        """
        if self.single_architecture:
            self._check(stack.architecture)
        return self.standardise(stack)

    def _check(self, found: Architecture) -> None:
        expected, got = self.first.graph, found.graph
        if expected.parameters != got.parameters:
            told = f"expected parameters {_said(expected.parameters)}; got {_said(got.parameters)}"
            raise ValueError(f"{self.name}: is tied to one architecture: {told}")
        if (expected.blocks, expected.biases) != (got.blocks, got.biases):
            told = "expected the same connections of parameters in all networks; got others"
            raise ValueError(f"{self.name}: is tied to one architecture: {told}")


def _said(parameters: Sequence[ParameterSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.shape}" for spec in parameters)
