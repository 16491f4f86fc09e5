"""Step sizes by parameter and time: a multiplier of the step sizes of a rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ngopt.devices import Array
from ngopt.soap.config import Measured, Network

FEATURES = 4
"""See `BoundRates._features`."""


@dataclass(frozen=True, eq=False)
class Rates:
    """Logarithms of the factors of n parameters over a run.

    At a share t of the steps a factor is the exponential of the line through `knots`
    at t, plus the output of an MLP that reads how the RMS of gradient and weights have
    changed since the first step. All zero: every factor is 1.

    Attributes:
        knots: (n, k), at equal distances from the first step to the horizon.
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
        return self.bound(network.positions, network.total_steps)

    def bound(self, positions: Sequence[int], total_steps: int) -> "BoundRates":
        """positions: of the parameters among the n."""
        return BoundRates(self, positions, total_steps)


class BoundRates:
    """The factors of some parameters in a run of known length."""

    def __init__(self, rates: Rates, positions: Sequence[int], total_steps: int):
        rows = torch.tensor(list(positions))
        self._knots = rates.knots[rows.to(rates.knots.device)]
        self._hidden, self._output = rates.hidden, rates.output
        if rates.hidden is not None and rates.hidden.ndim == 3:
            assert rates.output is not None
            self._hidden, self._output = rates.hidden[rows], rates.output[rows]

    @property
    def reads_gradients(self) -> bool:
        return self._hidden is not None

    def __call__(
        self,
        measured: Measured | None,
        progress: Array | None,
        state: dict[str, Tensor],
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """See `ngopt.soap.config.BoundMultiplier`.

        measured: None if no gradients are read. rows: of the parameters that `measured`
        contains; None: all.
        """
        knots = self._knots if rows is None else self._knots[list(rows)]
        if progress is None:
            return torch.ones_like(knots[:, 0])
        if measured is not None:
            assert isinstance(measured.grad_rms, Tensor)
            knots = knots.to(measured.grad_rms)
        share = torch.as_tensor(progress, dtype=knots.dtype, device=knots.device)
        place = share.clamp(0, 1) * (knots.shape[1] - 1)
        distance = place.unsqueeze(-1) - torch.arange(knots.shape[1]).to(knots)
        logarithms = (knots * (1 - distance.abs()).clamp(min=0)).sum(-1)
        if measured is not None and self._hidden is not None:
            logarithms = logarithms + self._feedback(measured, share, rows)
        return logarithms.exp()

    def _feedback(
        self, measured: Measured, share: Tensor, rows: Sequence[int] | None
    ) -> Tensor:
        assert self._hidden is not None and self._output is not None
        hidden, output = self._hidden, self._output
        if rows is not None and hidden.ndim == 3:
            hidden, output = hidden[list(rows)], output[list(rows)]
        x = features_of(measured, share).unsqueeze(-2)
        return (torch.tanh(x @ hidden.to(x)) @ output.to(x)).flatten()


def features_of(measured: Measured, share: Tensor) -> Tensor:
    """What the MLP reads, (n, FEATURES): logarithms of the RMS of gradient and weights
    over those of the first step, halved; the share of the steps; 1."""
    first = measured.first
    assert first is not None
    columns = []
    for value, start in (
        (measured.grad_rms, first.grad_rms),
        (measured.weight_rms, first.weight_rms),
    ):
        ratio = torch.as_tensor(value) / torch.as_tensor(start)
        ratio = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
        columns.append(0.5 * ratio.log())
    share = share.expand_as(columns[0])
    return torch.stack([*columns, share, torch.ones_like(share)], -1)
