"""Parameters of networks, each tensor of them standardised by statistics of the
training data."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from ngopt.graph.groups_and_blocks import Bias, EdgeBlock
from ngopt.graph.kinds import EDGE_KINDS, kind_code
from ngopt.graph.neural_graph import NeuralGraph
from tasks.networks.architectures import Architecture, Stack


class Standardise(nn.Module):
    """Parameters less a mean, divided by a standard deviation; both are one number a
    tensor.

    architecture: of all networks, each of whose parameters has statistics of its own.
    None where networks differ: then those of a kind share theirs, see `kinds`, and a
    kind that the training data lacks takes those of all parameters.

    Buffers mean and std (rows,): 0 and 1 until `fit`.
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
    def count(self) -> int:
        """Of different statistics, see `rows`."""
        return len(self.mean)

    @torch.no_grad()
    def fit(self, stacks: Iterable[Stack]) -> None:
        """Takes the statistics from training data. Raises ValueError if there is none."""
        moments = torch.zeros(self.count, 3, dtype=torch.float64)
        for stack in stacks:
            for row, value in zip(self.rows(stack), stack.params, strict=True):
                moments[row] += _moments(value).cpu()
        if not moments.any():
            raise ValueError(
                "standardise: expected networks to take statistics from; got none"
            )
        is_there = moments[:, :1] > 0
        count, first, second = torch.where(is_there, moments, moments.sum(0)).unbind(1)
        mean = first / count
        variance = (second / count - mean.square()).clamp_min(0)
        # of what never differs only the mean can be taken away
        std = torch.where(variance > 0, variance, 1).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, stack: Stack) -> list[Tensor]:
        """Standardised parameters, (b, *shape) each. Raises ValueError as `rows` does."""
        rows = self.rows(stack)
        means = self.mean[rows].unbind()
        stds = self.std[rows].unbind()
        triples = zip(stack.params, means, stds, strict=True)
        return [(value - mean) / std for value, mean, std in triples]

    def rows(self, stack: Stack) -> list[int]:
        """Where the statistics of each parameter are: which tensor it is, or of which
        kind.

        Raises ValueError for networks with other parameters than those of the
        architecture.
        """
        if self.names is None:
            return kinds(stack.architecture)
        found = stack.architecture.names
        if found != self.names:
            expected = ", ".join(self.names)
            got = ", ".join(found)
            told = f"expected networks with parameters {expected}; got {got}"
            raise ValueError(f"standardise: {told}")
        return list(range(len(found)))


NUM_KINDS = 4 * len(EDGE_KINDS)


@lru_cache(maxsize=4096)
def kinds(architecture: Architecture) -> list[int]:
    """What each parameter is: its kind in the graph, and whether it reads inputs or
    makes outputs.

    Numbers below `NUM_KINDS`. Of a parameter that is used more than once, its first use
    counts.
    """
    graph = architecture.graph
    found: dict[int, int] = {}
    places: list[Bias | EdgeBlock] = [*graph.biases, *graph.weights]
    for place in places:
        assert place.view is not None
        found.setdefault(place.view.parameter, _kind(graph, place))
    return [found[number] for number in range(len(graph.parameters))]


def _kind(graph: NeuralGraph, place: Bias | EdgeBlock) -> int:
    is_edge = isinstance(place, EdgeBlock)
    target = place.target if is_edge else place.group
    reads_inputs = is_edge and graph.groups[place.source].role == "input"
    makes_outputs = graph.groups[target].role == "output"
    return 4 * kind_code(place.kind, EDGE_KINDS) + 2 * reads_inputs + makes_outputs


def _moments(value: Tensor) -> Tensor:
    """Count, sum and sum of squares, float64 (3,)."""
    exact = value.double()
    count = torch.full_like(exact.sum(), value.numel())
    return torch.stack([count, exact.sum(), exact.square().sum()])
