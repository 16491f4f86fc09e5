"""Learned factors of the step sizes: a multiplier of `ngopt.soap`.

Small networks read what is known at the first step (`features`). They predict one
factor for all parameters, and how it changes from the first layer to the last. They are
fitted to the losses of random training runs at other step sizes
(`meta_train.step_size`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ngopt.devices import Array, precise_dtype
from ngopt.learned_step import features
from ngopt.learned_step.features import FEATURES
from ngopt.soap.config import Measured, Network

MAX_LOG2 = 3.0  # largest |log2| of a factor
MAX_SLOPE = 1.0  # largest |log2| of the last layer's factor / that of a middle layer

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weights (..., e, inputs, outputs) and biases (..., e, 1, outputs) of e networks."""


class Scaling(NamedTuple):
    """For standardisation of features, and their range, (..., d) each."""

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor


class StepPredictor(NamedTuple):
    """Two ensembles of e networks with one hidden layer of width h; d features.

    The first predicts log2 of the factor of all parameters. The second predicts what is
    added at the last layer and subtracted at the first. A prediction is the mean
    output, moved towards 0 by `caution` standard deviations of the outputs. It goes to
    0 as features leave the range of the trainings that the networks were fitted to.
    """

    mean: Tensor  # of features, (2, d)
    scale: Tensor
    low: Tensor  # range of features, (2, d)
    high: Tensor
    hidden: Tensor  # weights (2, e, d, h)
    hidden_bias: Tensor  # (2, e, 1, h)
    output: Tensor  # (2, e, h, 1)
    output_bias: Tensor  # (2, e, 1, 1)
    caution: Tensor  # (2,)

    def __repr__(self) -> str:
        _, members, features, width = self.hidden.shape
        size = f"{features} features, width {width}"
        return f"StepPredictor(2 x {members} networks, {size})"

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "StepPredictor":
        """Raises ValueError if tensors are missing or of other features."""
        is_known = tensors.keys() == set(cls._fields)
        if not is_known or tensors["mean"].shape != (2, len(FEATURES)):
            raise ValueError(
                f"step predictor: expected {', '.join(cls._fields)} of "
                f"2 x {len(FEATURES)} features; got {', '.join(sorted(tensors))}"
            )
        return cls(**tensors)

    def predict(self, features: Tensor) -> Tensor:
        """log2 of the factor and its slope, (2, n), of features (n, d)."""
        own = StepPredictor(*[x.to(features) for x in self])
        scaling = Scaling(own.mean, own.scale, own.low, own.high)
        layers = (own.hidden, own.hidden_bias), (own.output, own.output_bias)
        return cautious_prediction(features, scaling, layers, own.caution)


def outputs(x: Tensor, layers: Layers) -> Tensor:
    """Predictions (..., e, n) of standardised features (..., n, d).

    There is tanh between layers.
    """
    (weight, bias), *others = layers
    y = x @ weight + bias
    for weight, bias in others:
        y = torch.tanh(y) @ weight + bias
    return MAX_LOG2 * torch.tanh(y.squeeze(-1) / MAX_LOG2)


def cautious_prediction(
    features: Tensor, scaling: Scaling, layers: Layers, caution: Tensor
) -> Tensor:
    """The mean output (..., n) of features (n, d), moved towards 0.

    See `StepPredictor`.
    """
    mean, scale, low, high = (x.unsqueeze(-2) for x in scaling)
    inside = features.clamp(low, high)
    y = outputs(((inside - mean) / scale).unsqueeze(-3), layers)
    centre = y.mean(-2)
    deviations = caution.unsqueeze(-1) * y.std(-2, correction=0)
    size = (centre.abs() - deviations).clamp(min=0)
    distance = ((features - inside).abs() / scale).sum(-1)
    return (-distance).exp() * centre.sign() * size


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
        roles, shapes = network.roles, network.shapes
        known = features.known_features(roles, shapes, total_steps)
        dtype = precise_dtype(network.device)
        self._known = torch.tensor(
            list(known.values()), dtype=dtype, device=network.device
        )
        self._matrices = features.matrices_of(roles)
        inverse = features.inverse_init_rms(roles, self._matrices)
        self._inverse = self._known.new_tensor(inverse)
        self._depths = self._known.new_tensor([roles[i].depth for i in self._matrices])
        self._numels = self._known.new_tensor(list(map(math.prod, shapes)))
        self._positions = self._known.new_tensor(features.layer_positions(roles))

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
        """The factors, (n,); 1 without matrices, and without a gradient of them.

        The gradients of a loss that is 0 or not finite count as none.
        """
        if not self._matrices:
            return torch.ones_like(self._positions)
        assert measured.excess is not None
        matrices = torch.tensor(self._matrices, device=self._known.device)
        size = measured.weight_rms[matrices].to(self._known) * self._inverse
        excess = measured.excess[matrices].to(self._known)
        of_network = features.weight_features(size, excess)
        of_network |= features.gradient_features(
            self._depths, self._numels, measured, self._matrices
        )
        values = torch.cat((self._known, torch.stack(list(of_network.values()))))
        predicted = self._predictor.predict(values.unsqueeze(0)).squeeze(-1)
        has_gradient = of_network["matrices without gradient"] < 1
        predicted = torch.where(has_gradient, predicted, 0.0)
        log_factor, slope = predicted.nan_to_num(0.0)  # weights may not be finite
        return layer_factors(log_factor, slope, self._positions)


def layer_factors(log_factor: Tensor, slope: Tensor, positions: Tensor) -> Tensor:
    """Factors of parameters (n,). log_factor, slope: see `StepPredictor`, () each.

    positions: see `layer_positions`, (n,).
    """
    return torch.exp2(log_factor + slope.clamp(-MAX_SLOPE, MAX_SLOPE) * positions)
