"""Base classes of the models of the tasks, which read stacks of networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar
from warnings import filterwarnings

import torch
from torch import Tensor, nn

from ngopt.graph import ParameterSpec
from tasks.models.standardise import Standardise
from tasks.networks.architectures import Architecture, NetworkStack


def compile_steps(model: nn.Module) -> None:
    """Compiles the forward pass of a model, again for each shape."""
    # dynamo traces functions with an lru_cache correctly, but warns
    filterwarnings("ignore", "Dynamo detected a call to a `functools")
    model.compile(dynamic=False)


class NetworkModel(nn.Module):
    """Base class. A reader predicts numbers of each network, an editor updates of its
    parameters.

    A subclass has `build`, which makes its layers, `forward`, for readers, and where
    `can_edit` also `updates`, for editors. Its `Config` is a frozen dataclass of sizes.

    architectures: of the training data. d_out: number of predictions, or of updates of
    a parameter. edits: whether the model is an editor.

    Raises ValueError for an editor if the class cannot edit, and without architectures.
    """

    name: ClassVar[str]
    Config: ClassVar[Any]
    can_edit: ClassVar[bool] = False

    def __init__(
        self,
        architectures: Sequence[Architecture],
        d_out: int,
        config: Any,
        edits: bool = False,
    ):
        super().__init__()
        if edits and not self.can_edit:
            raise ValueError(f"{self.name}: reads networks, but cannot edit them")
        if not architectures:
            raise ValueError(
                f"{self.name}: expected the architectures of its networks; got none"
            )
        self.architectures, self.first = architectures, architectures[0]
        self.d_out, self.edits = d_out, edits
        self.build(d_out, config)

    def build(self, d_out: int, config: Any) -> None:
        """Makes the layers; called once, by the constructor."""

    def fit(self, stacks: Iterable[NetworkStack]) -> None:
        """Computes statistics of the training data; by default none."""

    def set_progress(self, share: float) -> int:
        """Called before each training step; returns the number of the current stage.

        share: of the training budget that has been used.

        There is one stage, unless a subclass trains its parts one after the other.
        """
        return 0

    def chunks(self, stack: NetworkStack) -> list[NetworkStack]:
        """A stack in the chunks that compiled steps read; by default a single one."""
        return [stack]

    def forward(self, stack: NetworkStack) -> Tensor:
        """Predictions of a reader for b networks, (b, d_out)."""
        raise NotImplementedError

    def forward_mixed(self, stacks: Sequence[NetworkStack]) -> Tensor:
        """Predictions of a reader for networks of several architectures, stack after
        stack, (n, d_out)."""
        return torch.cat([self.forward(stack) for stack in stacks])

    def updates(self, stack: NetworkStack) -> list[Tensor]:
        """Updates of an editor for b networks, (b, d_out, *shape) per parameter."""
        raise NotImplementedError


class ParameterModel(NetworkModel):
    """Base class of models that read parameters, standardised by statistics of the
    training data.

    single_architecture: whether networks may differ only in parameters and activation
    functions.

    Raises ValueError for several architectures if `single_architecture`.
    """

    single_architecture: ClassVar[bool] = False

    def build(self, d_out: int, config: Any) -> None:
        names = self.first.names
        same_names = True
        for architecture in self.architectures:
            if self.single_architecture:
                self._check(architecture)
            same_names = same_names and architecture.names == names
        self.standardise = Standardise(self.first if same_names else None)

    def fit(self, stacks: Iterable[NetworkStack]) -> None:
        """Computes the statistics."""
        self.standardise.fit(stacks)

    def standardised(self, stack: NetworkStack) -> list[Tensor]:
        """Standardised parameters, (b, *shape) each.

        Raises ValueError for another architecture if `single_architecture`.
        """
        if self.single_architecture:
            self._check(stack.architecture)
        return self.standardise(stack)

    def _check(self, architecture: Architecture) -> None:
        expected, got = self.first.graph, architecture.graph
        if expected.parameters != got.parameters:
            raise ValueError(
                f"{self.name}: is tied to one architecture: expected parameters "
                f"{_shapes(expected.parameters)}; got {_shapes(got.parameters)}"
            )
        if (expected.blocks, expected.biases) != (got.blocks, got.biases):
            raise ValueError(
                f"{self.name}: is tied to one architecture: expected the same "
                f"connections of parameters in all networks; got others"
            )


def _shapes(parameters: Sequence[ParameterSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.shape}" for spec in parameters)
