"""The fitted predictor of step sizes: an ensemble of small networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ngopt.base.step_predictor import MOST

Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Predictor:
    """Maps d features of n networks to log2 multipliers of the step size.

    Attributes:
        names: of the features. mean, scale: for standardisation, (d,).
        low, high: range of the features in the data, (d,).
        layers: weights (e, inputs, outputs) and biases (e, 1, outputs) of e members;
            tanh is between layers.
        caution: standard deviations of the members by which predictions are nearer
            to 0.
    """

    names: Sequence[str]
    mean: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    layers: Sequence[Layer]
    caution: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """log2 multipliers of features (n, d), (n,); near 0 beyond the data's range."""
        inside = x.clip(self.low, self.high)
        members = self.members((inside - self.mean) / self.scale)
        mean = members.mean(0)
        size = np.abs(mean) - self.caution * members.std(0)
        distance = np.abs(x - inside) / self.scale
        share = np.exp(-distance.sum(1))
        return share * np.sign(mean) * size.clip(0.0)

    def members(self, z: np.ndarray) -> np.ndarray:
        """Predictions (e, n) of all members from standardised features (n, d)."""
        (weight, bias), *others = self.layers
        y = z @ weight + bias
        for weight, bias in others:
            y = np.tanh(y) @ weight + bias
        return MOST * np.tanh(y[..., 0] / MOST)
