"""The learned part of a base rule: a factor of the step size for all parameters.

Small networks read what is known at the first step (`network_features`). They are
fitted to the losses of random trainings at seven step sizes (`meta_train.step_size`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.network_features import (
    FEATURES,
    FirstMeasures,
    gradient_features,
    inverse_init_rms,
    known_features,
    matrices_of,
    weight_features,
)
from ngopt.devices import precise_dtype
from ngopt.roles.from_graph import ParameterRole

MAX_LOG2 = 3.0  # largest |log2| of a factor


Layers = Sequence[tuple[Tensor, Tensor]]
"""Weights (e, inputs, outputs) and biases (e, 1, outputs) of e networks."""


class Scaling(NamedTuple):
    """For standardisation of features, and their range, (d,) each."""

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor


class StepPredictor(NamedTuple):
    """An ensemble of e networks with one hidden layer of width h; d features.

    The factor is 2 to the power of the mean output, which is nearer to 0 by `caution`
    standard deviations of the outputs. It goes to 1 as features leave the range of the
    trainings that the networks were fitted to. Without matrices it is 1.
    """

    mean: Tensor  # of features, (d,)
    scale: Tensor
    low: Tensor  # range of features, (d,)
    high: Tensor
    hidden: Tensor  # weights (e, d, h)
    hidden_bias: Tensor  # (e, 1, h)
    output: Tensor  # (e, h, 1)
    output_bias: Tensor  # (e, 1, 1)
    caution: Tensor  # ()

    def __repr__(self) -> str:
        members, features, width = self.hidden.shape
        return f"StepPredictor({members} networks, {features} features, width {width})"

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> StepPredictor:
        """Raises ValueError if tensors are missing or of other features."""
        is_known = tensors.keys() == set(cls._fields)
        if not is_known or len(tensors["mean"]) != len(FEATURES):
            raise ValueError(
                f"step predictor: expected {', '.join(cls._fields)} of "
                f"{len(FEATURES)} features; got {', '.join(sorted(tensors))}"
            )
        return cls(**tensors)

    def log_factor(self, features: Tensor) -> Tensor:
        """log2 of the factors, (n,), of features (n, d)."""
        own = StepPredictor(*[x.to(features) for x in self])
        scaling = Scaling(own.mean, own.scale, own.low, own.high)
        layers = (own.hidden, own.hidden_bias), (own.output, own.output_bias)
        return cautious_prediction(features, scaling, layers, own.caution)


def outputs(x: Tensor, layers: Layers) -> Tensor:
    """log2 of factors (e, n) of standardised features (n, d); tanh between layers."""
    (weight, bias), *others = layers
    y = x @ weight + bias
    for weight, bias in others:
        y = torch.tanh(y) @ weight + bias
    return MAX_LOG2 * torch.tanh(y.squeeze(-1) / MAX_LOG2)


def cautious_prediction(
    features: Tensor, scaling: Scaling, layers: Layers, caution: Tensor | float
) -> Tensor:
    """The mean output (n,) of features (n, d), moved towards 0: see `StepPredictor`."""
    inside = features.clamp(scaling.low, scaling.high)
    y = outputs((inside - scaling.mean) / scaling.scale, layers)
    mean = y.mean(0)
    size = mean.abs() - caution * y.std(0, correction=0)
    distance = (features - inside).abs() / scaling.scale
    return (-distance.sum(-1)).exp() * mean.sign() * size.clamp(min=0)


class NetworkFactor:
    """The factor of parameters that have their first gradients together.

    roles, shapes: of these n parameters, of one dtype and device.
    """

    def __init__(
        self,
        predictor: StepPredictor,
        roles: Sequence[ParameterRole],
        shapes: Sequence[Sequence[int]],
        total_steps: int,
        device: torch.device,
    ):
        known = known_features(roles, shapes, total_steps)
        dtype = precise_dtype(device)
        values = list(known.values())
        self._known = torch.tensor(values, dtype=dtype, device=device)
        self.matrices = matrices_of(roles)
        inverse = inverse_init_rms(roles, self.matrices)
        self._inverse = self._known.new_tensor(inverse)
        depths = [roles[i].depth for i in self.matrices]
        self._depths = self._known.new_tensor(depths)
        self._predictor = predictor

    def of(self, measures: FirstMeasures) -> Tensor:
        """The factor, ()."""
        if not self.matrices:
            return self._known.new_ones(())
        zero = self._known.new_zeros(())
        own = [measures.excesses.get(i, zero).to(zero) for i in self.matrices]
        sizes = torch.stack([measures.rms[i] for i in self.matrices]).to(zero)
        found = weight_features(sizes * self._inverse, torch.stack(own))
        found |= gradient_features(self._depths, measures, self.matrices)
        features = torch.cat((self._known, torch.stack(list(found.values()))))
        log_factor = self._predictor.log_factor(features.unsqueeze(0))[0]
        return torch.exp2(log_factor.nan_to_num(0.0))  # weights may not be finite
