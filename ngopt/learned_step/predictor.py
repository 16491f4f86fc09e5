"""Learned factors of the step sizes: a multiplier of `ngopt.soap`.

Small networks read what is known at the first step (`features`). They predict one
factor for all parameters, and how it changes from the first layer to the last. They are
fitted to the losses of random training runs at other step sizes
(`meta_train.step_size`). Factors are near 1 where the networks disagree, and 1 where no
training run was similar or predictions did not help.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ngopt.devices import Array
from ngopt.learned_step.features import (
    FEATURES,
    LOG_STEPS,
    NO_GRADIENT,
    NetworkFeatures,
    layer_positions,
)
from ngopt.soap.config import Measured, Network

MAX_LOG2 = 1.0  # largest |log2| of a factor
NEGLIGIBLE = math.log2(1.02)  # |log2| of a factor that is 1


class StepPredictor(NamedTuple):
    """An ensemble of e networks with one hidden layer of width h; d features.

    Output 0 is log2 of the factor of all parameters. Output 1 is added at the last
    layer and subtracted at the first.
    """

    mean: Tensor  # of features, (d,)
    scale: Tensor  # their standard deviations, (d,)
    hidden: Tensor  # weights (e, d, h)
    hidden_bias: Tensor  # (e, 1, h)
    output: Tensor  # (e, h, 2)
    output_bias: Tensor  # (e, 1, 2)
    # standard deviations of the networks by which outputs are nearer to 0, (2,)
    caution: Tensor
    points: Tensor  # standardized features of typical training runs, (k, d)
    trusted: Tensor  # 1 where predictions for such runs lowered the loss, else 0, (k,)
    reach: Tensor  # distance from the nearest point up to which networks count, ()
    longest: Tensor  # feature of the longest training runs, ()

    def __repr__(self) -> str:
        members, count, width = self.hidden.shape
        return f"StepPredictor({members} networks, {count} features, width {width})"

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "StepPredictor":
        """Raises ValueError if tensors are missing or of other features."""
        is_known = tensors.keys() == set(cls._fields)
        if not is_known or tensors["mean"].shape != (len(FEATURES),):
            raise ValueError(
                f"step predictor: expected {', '.join(cls._fields)} of "
                f"{len(FEATURES)} features; got {', '.join(sorted(tensors))}"
            )
        return cls(**tensors)

    def predict(self, features: Tensor) -> Tensor:
        """The outputs (n, 2) for features (n, d).

        They are the mean of the networks, moved towards 0 by `caution`, times `trust`.
        """
        moved = StepPredictor(*[x.to(features) for x in self])
        x = (features - moved.mean) / moved.scale
        y = moved.networks(x)
        mean = y.mean(0)
        deviation = y.std(0, correction=0)
        size = (mean.abs() - moved.caution * deviation).clamp(min=0)
        return moved.trust(x).unsqueeze(1) * mean.sign() * size

    def networks(self, x: Tensor) -> Tensor:
        """Outputs (e, n, 2) of every network for standardized features (n, d)."""
        y = torch.tanh(x @ self.hidden + self.hidden_bias)
        return MAX_LOG2 * torch.tanh(y @ self.output + self.output_bias)

    def trust(self, x: Tensor) -> Tensor:
        """From 1 near training runs to 0 where none is similar, (n,).

        It is 0 from twice the reach on, for twice as many steps as in the longest runs,
        and if the nearest are not `trusted`. x: standardized features (n, d).
        """
        distance, nearest = torch.cdist(x, self.points).min(1)
        place = FEATURES.index(LOG_STEPS)
        log_steps = x[:, place] * self.scale[place] + self.mean[place]
        longer = (log_steps - self.longest) / math.log(2)
        near = (2 - distance / self.reach).clamp(0, 1) * self.trusted[nearest]
        return near * (1 - longer).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class LearnedStep:
    """The multiplier: factors that are predicted at the first gradient and kept.

    Without a horizon all factors are 1.

    Attributes:
        recipe, table: JSON, how the predictor was fitted and what was measured with it.
    """

    predictor: StepPredictor
    recipe: Mapping[str, Any] = field(default_factory=lambda: {"stages": []})
    table: Mapping[str, Any] = field(default_factory=dict)
    state: ClassVar[Mapping[str, float]] = {"predicted": 1.0}

    def bind(self, network: Network) -> "NetworkFactors | None":
        """See `ngopt.soap.config.Multiplier`."""
        if network.total_steps is None:
            return None
        return NetworkFactors(self.predictor, network, network.total_steps)


class NetworkFactors:
    """The factors of a network's parameters."""

    def __init__(self, predictor: StepPredictor, network: Network, total_steps: int):
        self._predictor = predictor
        self._features = NetworkFeatures(network, total_steps)
        positions = layer_positions(network.roles)
        self._positions = self._features.known.new_tensor(positions)

    def __call__(
        self, measured: Measured, progress: Array | None, state: dict[str, Tensor]
    ) -> Tensor:
        """See `ngopt.soap.config.BoundMultiplier`."""
        if measured.is_first is not None:
            factors = torch.ones_like(state["predicted"])
            if progress is not None:
                factors = self.predicted(measured)
            predicted = torch.where(measured.is_first, factors, state["predicted"])
            state["predicted"] = predicted
        return state["predicted"]

    def predicted(self, measured: Measured) -> Tensor:
        """The factors, (n,), from 1/2 to 2, and exactly 1 where within 2 % of it.

        1 without matrices, and without a gradient of them. The gradients of a loss that
        is 0 or not finite count as none.
        """
        if not self._features.matrices:
            return torch.ones_like(self._positions)
        values = self._features(measured)
        predicted = self._predictor.predict(values.unsqueeze(0)).squeeze(0)
        has_gradient = values[FEATURES.index(NO_GRADIENT)] < 1
        predicted = torch.where(has_gradient, predicted, 0.0)
        of_all, at_last = predicted.nan_to_num(0.0)
        log_factor = of_all + at_last * self._positions
        log_factor = log_factor.clamp(-MAX_LOG2, MAX_LOG2)
        is_negligible = log_factor.abs() <= NEGLIGIBLE
        return torch.exp2(torch.where(is_negligible, 0.0, log_factor))
