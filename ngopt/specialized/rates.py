"""Step sizes by parameter and time: a multiplier of the step sizes of a rule."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ngopt.devices import Array
from ngopt.soap.config import Measured, Network

FEATURES = 4
"""See `features_of`."""


@dataclass(frozen=True, eq=False)
class Rates:
    """Logarithms of the factors of n parameters over a run.

    At a share t of the steps a factor is the exponential of the line through `knots`
    at t, plus the output of an MLP that reads how the RMS of gradient and weights have
    changed since the first step. All zero: every factor is 1.

    Attributes:
        knots: (n, k), at equal distances from the first step to the horizon; or those
            of the shortest and of the longest horizon, (n, 2, k).
        hidden, output: weights of the MLP, (FEATURES, h) and (h, 1), or one for each
            parameter, (n, FEATURES, h) and (n, h, 1); None without it.
    """

    knots: Tensor
    hidden: Tensor | None = None
    output: Tensor | None = None
    state: ClassVar[Mapping[str, float]] = {}

    def bind(self, network: Network) -> "BoundRates | None":
        """See `ngopt.soap.config.Multiplier`."""
        if network.total_steps is None:
            return None
        return BoundRates(self, network.positions)

    def at(self, place: float) -> "Rates":
        """Of one horizon; place: see `place_between`."""
        if self.knots.ndim == 2:
            return self
        shortest, longest = self.knots.unbind(1)
        return replace(self, knots=(1 - place) * shortest + place * longest)

    def of(self, positions: Sequence[int]) -> "Rates":
        """Of some parameters."""
        rows = list(positions)
        hidden, output = self.hidden, self.output
        if hidden is not None and output is not None and hidden.ndim == 3:
            hidden, output = hidden[rows], output[rows]
        return Rates(self.knots[rows], hidden, output)


class BoundRates:
    """The factors of some parameters; positions: of these among the n."""

    def __init__(self, rates: Rates, positions: Sequence[int]):
        rates = rates.of(positions)
        self._knots = rates.knots
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


def place_between(horizons: tuple[int, int], steps: int) -> float:
    """From 0 for the shortest to 1 for the longest horizon, in logarithms."""
    shortest, longest = horizons
    if shortest == longest:
        return 0.0
    return math.log(steps / shortest) / math.log(longest / shortest)


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
