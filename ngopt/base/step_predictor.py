"""The learned part of a base rule: factors of the step sizes.

Small networks read what is known at the first step (`network_features`). They predict
one factor for all parameters, and how it changes from the first layer to the last. They
are fitted to the losses of random trainings at other step sizes
(`meta_train.step_size`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ngopt.base import network_features
from ngopt.base.network_features import FEATURES, FirstMeasures
from ngopt.devices import precise_dtype

if TYPE_CHECKING:
    from ngopt.base.soap import SoapRule

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
    standardised = (inside - mean) / scale
    y = outputs(standardised.unsqueeze(-3), layers)
    centre = y.mean(-2)
    deviations = caution.unsqueeze(-1) * y.std(-2, correction=0)
    size = (centre.abs() - deviations).clamp(min=0)
    outside = (features - inside).abs()
    distance = (outside / scale).sum(-1)
    return (-distance).exp() * centre.sign() * size


class NetworkFactors:
    """The factors of parameters that have their first gradients together.

    positions: of these n parameters, of one dtype and device, among those of a rule
    with a predictor and a horizon.
    """

    def __init__(
        self, rule: "SoapRule", positions: Sequence[int], device: torch.device
    ):
        assert rule.predictor is not None and rule.total_steps is not None
        roles = [rule.roles[i] for i in positions]
        shapes = [rule.graph.parameters[i].shape for i in positions]
        known = network_features.known_features(roles, shapes, rule.total_steps)
        dtype = precise_dtype(device)
        values = list(known.values())
        self._known = torch.tensor(values, dtype=dtype, device=device)
        self.matrices = network_features.matrices_of(roles)
        inverse = network_features.inverse_init_rms(roles, self.matrices)
        self._inverse = self._known.new_tensor(inverse)
        depths = [roles[i].depth for i in self.matrices]
        self._depths = self._known.new_tensor(depths)
        self._numels = self._known.new_tensor(list(map(math.prod, shapes)))
        positions_of_layers = network_features.layer_positions(roles)
        self._positions = self._known.new_tensor(positions_of_layers)
        self._predictor = rule.predictor

    def of(self, measures: FirstMeasures) -> Tensor:
        """The factors, (n,); 1 without matrices, and without a gradient of them.

        The gradients of a loss that is 0 or not finite count as none.
        """
        if not self.matrices:
            return torch.ones_like(self._positions)
        zero = self._known.new_zeros(())
        sizes, excesses = [], []
        for i in self.matrices:
            sizes.append(measures.rms[i])
            excess = measures.excesses.get(i, zero)
            excesses.append(excess.to(zero))
        size = torch.stack(sizes).to(zero) * self._inverse
        found = network_features.weight_features(size, torch.stack(excesses))
        found |= network_features.gradient_features(
            self._depths, self._numels, measures, self.matrices
        )
        measured = torch.stack(list(found.values()))
        features = torch.cat((self._known, measured))
        predicted = self._predictor.predict(features.unsqueeze(0)).squeeze(-1)
        has_gradient = found["matrices without gradient"] < 1
        predicted = torch.where(has_gradient, predicted, 0.0)
        log_factor, slope = predicted.nan_to_num(0.0)  # weights may not be finite
        return layer_factors(log_factor, slope, self._positions)


def layer_factors(log_factor: Tensor, slope: Tensor, positions: Tensor) -> Tensor:
    """Factors of parameters (n,). log_factor, slope: see `StepPredictor`, () each.

    positions: see `layer_positions`, (n,).
    """
    return torch.exp2(log_factor + slope.clamp(-MAX_SLOPE, MAX_SLOPE) * positions)
