"""Base classes of the models of the tasks, which read stacks of networks, and the
standardisation of parameters by statistics of the training data."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar
from warnings import filterwarnings

import torch
from torch import Tensor, nn

from ngopt.graph import ParameterSpec
from ngopt.graph.kinds import EDGE_KINDS, kind_code
from tasks.networks.architectures import Architecture, NetworkStack

NUM_KINDS = 4 * len(EDGE_KINDS)


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
        return torch.cat(list(map(self.forward, stacks)))

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
        for architecture in self.architectures:
            self._check(architecture)
        names = {architecture.names for architecture in self.architectures}
        self.standardise = Standardise(self.first if len(names) == 1 else None)

    def fit(self, stacks: Iterable[NetworkStack]) -> None:
        """Computes the statistics."""
        self.standardise.fit(stacks)

    def standardised(self, stack: NetworkStack) -> list[Tensor]:
        """Standardised parameters, (b, *shape) each. Raises ValueError for another
        architecture if `single_architecture`."""
        self._check(stack.architecture)
        return self.standardise(stack)

    def _check(self, architecture: Architecture) -> None:
        if not self.single_architecture:
            return
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


class Standardise(nn.Module):
    """Subtracts a mean and divides by a standard deviation, both scalars per tensor.

    architecture: of all networks; then each of its parameters has its own statistics.
    None if networks differ; then parameters of the same kind share theirs, see
    `parameter_kinds`. A kind without training data has the statistics of all
    parameters.

    Buffers: mean and std (rows,), 0 and 1 before `fit`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture | None = None):
        super().__init__()
        self.names = None if architecture is None else architecture.names
        rows = NUM_KINDS if self.names is None else len(self.names)
        self.register_buffer("mean", torch.zeros(rows))
        self.register_buffer("std", torch.ones(rows))

    @property
    def row_count(self) -> int:
        return len(self.mean)

    @torch.no_grad()
    def fit(self, stacks: Iterable[NetworkStack]) -> None:
        """Computes the statistics. Raises ValueError without networks."""
        # count, sum and sum of squares
        moments = torch.zeros(self.row_count, 3, dtype=torch.float64)
        for stack in stacks:
            for row, value in zip(self.rows(stack), stack.params, strict=True):
                exact = value.double()
                moments[row, 0] += value.numel()
                moments[row, 1] += exact.sum().cpu()
                moments[row, 2] += exact.square().sum().cpu()
        if not moments.any():
            raise ValueError(
                "standardise: expected networks to take statistics from; got none"
            )
        has_data = moments[:, :1] > 0
        count, first, second = torch.where(has_data, moments, moments.sum(0)).unbind(1)
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0)
        self.mean.copy_(mean)
        # a constant parameter is only centred
        self.std.copy_(torch.where(variance > 0, variance, 1).sqrt())

    def forward(self, stack: NetworkStack) -> list[Tensor]:
        """Standardised parameters, (b, *shape) each. Raises ValueError as `rows`."""
        rows = self.rows(stack)
        statistics = zip(stack.params, self.mean[rows], self.std[rows], strict=True)
        return [(value - mean) / std for value, mean, std in statistics]

    def rows(self, stack: NetworkStack) -> list[int]:
        """The row of the statistics of each parameter.

        Raises ValueError for networks with other parameters than the architecture.
        """
        if self.names is None:
            return parameter_kinds(stack.architecture)
        names = stack.architecture.names
        if names != self.names:
            raise ValueError(
                f"standardise: expected networks with parameters "
                f"{', '.join(self.names)}; got {', '.join(names)}"
            )
        return list(range(len(names)))


@lru_cache(maxsize=4096)
def parameter_kinds(architecture: Architecture) -> list[int]:
    """The kind of each parameter, below `NUM_KINDS`.

    It combines the kind in the graph, whether the parameter's edges start at inputs,
    and whether they end at outputs. The first use of a shared parameter counts.
    """
    graph = architecture.graph
    roles = [group.role for group in graph.groups]
    # parameter, kind, whether it starts at inputs, target
    uses = [(b.view.parameter, b.kind, False, b.group) for b in graph.biases]
    for block in graph.weights:
        is_first = roles[block.source] == "input"
        uses.append((block.elements.parameter, block.kind, is_first, block.target))
    kinds: dict[int, int] = {}
    for parameter, kind, is_first, target in uses:
        code = 4 * kind_code(kind, EDGE_KINDS) + 2 * is_first
        kinds.setdefault(parameter, code + (roles[target] == "output"))
    return [kinds[index] for index in range(len(graph.parameters))]
