"""Step sizes by parameter and time for one family of training runs: a multiplier."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ngopt.devices import Array
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.soap.config import Measured, Network
from ngopt.user_warnings import warn

FEATURES = 4
"""See `features_of`."""

Shapes = tuple[tuple[int, ...], ...]
"""Of all parameters of a network, in their order."""


@dataclass(frozen=True, eq=False)
class Rates:
    """Logarithms of the factors of n parameters over a run.

    At a share t of the steps a factor is the exponential of the line through `knots`
    at t, plus the output of an MLP that reads how the RMS of gradient and weights have
    changed since the first step. All zero: every factor is 1. For other shapes or
    horizons, and without a horizon, all factors are 1, and a UserWarning says why.

    Attributes:
        knots: (n, 2, k), of the shortest and of the longest horizon, at equal distances
            from the first step to the horizon. Others are between, in log(horizon).
        horizons: The shortest and the longest.
        shapes: Of the network; None: any.
        hidden, output: Weights of the MLP, (FEATURES, h) and (h, 1), or one for each
            parameter, (n, FEATURES, h) and (n, h, 1); None without it.
        recipe: JSON, how they were made. table: JSON, what was measured with them.
    """

    knots: Tensor
    horizons: tuple[int, int]
    shapes: Shapes | None = None
    hidden: Tensor | None = None
    output: Tensor | None = None
    recipe: Mapping[str, Any] = field(default_factory=lambda: {"stages": []})
    table: Mapping[str, Any] = field(default_factory=dict)
    state: ClassVar[Mapping[str, float]] = {}

    def bind(self, network: Network) -> "BoundRates | None":
        """See `ngopt.soap.config.Multiplier`."""
        return self.bound(network.graph, network.positions, network.total_steps)

    def bound(
        self, graph: NeuralGraph, positions: Sequence[int], total_steps: int | None
    ) -> "BoundRates | None":
        """The factors of some parameters of a graph; None if all are 1."""
        mismatch = self.mismatch(graph, total_steps)
        if total_steps is None or mismatch:
            warn_of(mismatch)
            return None
        return BoundRates(self.of(positions), total_steps)

    def mismatch(self, graph: NeuralGraph, total_steps: int | None) -> str:
        """Why all factors are 1, in such training runs; "" if they are not."""
        shortest, longest = self.horizons
        shapes = tuple(tuple(spec.shape) for spec in graph.parameters)
        if total_steps is None or not shortest <= total_steps <= longest:
            return (
                f"expected total_steps from {shortest} to {longest}; got {total_steps}"
            )
        if self.shapes is None or shapes == self.shapes:
            return ""
        order = ""
        if sorted(shapes) == sorted(self.shapes):
            order = ", in another order than model.parameters()"
        return f"expected parameters of shapes {self.shapes}; got {shapes}{order}"

    def of(self, positions: Sequence[int]) -> "Rates":
        """Of some parameters."""
        rows = list(positions)
        hidden, output = self.hidden, self.output
        if hidden is not None and output is not None and hidden.ndim == 3:
            hidden, output = hidden[rows], output[rows]
        return replace(self, knots=self.knots[rows], hidden=hidden, output=output)

    def at(self, total_steps: int) -> Tensor:
        """The knots of one horizon, (n, k)."""
        shortest, longest = map(math.log, self.horizons)
        place = 0.0
        if longest > shortest:
            place = (math.log(total_steps) - shortest) / (longest - shortest)
        return (1 - place) * self.knots[:, 0] + place * self.knots[:, 1]


def warn_of(mismatch: str) -> None:
    warn(f"specialized rule: {mismatch}. The base rule runs alone.")


class BoundRates:
    """The factors of some parameters in runs of one length."""

    def __init__(self, rates: Rates, total_steps: int):
        self._warned = False
        self._knots = rates.at(total_steps)
        self._mlp = None
        if rates.hidden is not None and rates.output is not None:
            self._mlp = rates.hidden, rates.output

    @property
    def reads_gradients(self) -> bool:
        return self._mlp is not None

    def __call__(
        self,
        measured: Measured | None,
        progress: Array | None,
        state: dict[str, Tensor],
    ) -> Tensor:
        """See `ngopt.soap.config.BoundMultiplier`. measured: None if it reads none."""
        if progress is None:
            if not self._warned:
                warn_of("expected its own schedule; got a learning rate that changes")
            self._warned = True
            return torch.ones_like(self._knots[:, 0])
        like = self._knots if measured is None else torch.as_tensor(measured.grad_rms)
        knots = self._knots.to(like)
        share = torch.as_tensor(progress).to(like).clamp(0, 1).unsqueeze(-1)
        last = knots.shape[1] - 1
        distance = last * share - torch.arange(last + 1).to(like)
        logarithms = (knots * (1 - distance.abs()).clamp(min=0)).sum(-1)
        if measured is not None and self._mlp is not None:
            hidden, output = (x.to(like) for x in self._mlp)
            x = features_of(measured, share).unsqueeze(-2)
            logarithms = logarithms + (torch.tanh(x @ hidden) @ output).flatten()
        return logarithms.exp()


def features_of(measured: Measured, share: Tensor) -> Tensor:
    """What the MLP reads, (n, FEATURES): halves of the logarithms of the RMS of
    gradient and weights over those of the first step; the share of the steps; 1."""
    first = measured.first
    assert first is not None
    now = torch.stack(list(map(torch.as_tensor, measured[:2])), -1)
    start = torch.stack(list(map(torch.as_tensor, first[:2])), -1)
    changes = 0.5 * (now / start).log()
    changes = torch.where(changes.isfinite(), changes, 0.0)
    ones = torch.ones_like(changes[:, :1])
    return torch.cat([changes, share * ones, ones], -1)
