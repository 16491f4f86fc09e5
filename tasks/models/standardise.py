"""Standardises parameters by statistics of the training data."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from ngopt.graph.groups_and_blocks import Bias, EdgeBlock
from ngopt.graph.kinds import EDGE_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph
from tasks.networks.architectures import Architecture, NetworkStack

NUM_KINDS = 4 * len(EDGE_KINDS)


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
        moments = torch.zeros(self.row_count, 3, dtype=torch.float64)
        for stack in stacks:
            for row, value in zip(self.rows(stack), stack.params, strict=True):
                moments[row] += _moments(value).cpu()
        if not moments.any():
            raise ValueError(
                "standardise: expected networks to take statistics from; got none"
            )
        has_data = moments[:, :1] > 0
        count, first, second = torch.where(has_data, moments, moments.sum(0)).unbind(1)
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0)
        # a constant parameter is only centred
        std = torch.where(variance > 0, variance, 1).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, stack: NetworkStack) -> list[Tensor]:
        """Standardised parameters, (b, *shape) each. Raises ValueError as `rows`."""
        rows = self.rows(stack)
        means = self.mean[rows].unbind()
        stds = self.std[rows].unbind()
        standardised = []
        for value, mean, std in zip(stack.params, means, stds, strict=True):
            standardised.append((value - mean) / std)
        return standardised

    def rows(self, stack: NetworkStack) -> list[int]:
        """Rows of the statistics of each parameter.

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
    kinds: dict[int, int] = {}
    uses: list[Bias | EdgeBlock] = [*graph.biases, *graph.weights]
    for use in uses:
        assert use.view is not None
        kinds.setdefault(use.view.parameter, _kind(graph, use))
    return [kinds[index] for index in range(len(graph.parameters))]


def _kind(graph: NeuralGraph, use: Bias | EdgeBlock) -> int:
    is_edge = isinstance(use, EdgeBlock)
    target = use.target if is_edge else use.group
    from_inputs = is_edge and graph.groups[use.source].role == "input"
    to_outputs = graph.groups[target].role == "output"
    return 4 * kind_code(use.kind, EDGE_KINDS) + 2 * from_inputs + to_outputs


def _moments(value: Tensor) -> Tensor:
    """Count, sum and sum of squares, float64 (3,)."""
    exact = value.double()
    count = torch.full_like(exact.sum(), value.numel())
    return torch.stack([count, exact.sum(), exact.square().sum()])
