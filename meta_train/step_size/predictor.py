"""The fitted predictor of step sizes: an ensemble of small networks, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.files import read_json, write_json

LIMIT = 3.0  # largest absolute log2 of a multiplier

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
        return LIMIT * np.tanh(y[..., 0] / LIMIT)

    def write(self, path: Path, **about: Any) -> None:
        """Writes JSON. about: further entries that describe the fit."""
        record = asdict(self)
        for name in ("mean", "scale", "low", "high"):
            record[name] = rounded(record[name])
        layers = []
        for weight, bias in self.layers:
            layers.append({"weight": rounded(weight), "bias": rounded(bias)})
        write_json(path, {**about, **record, "layers": layers})


def read_predictor(path: Path) -> Predictor:
    record = read_json(path, "predictor")
    arrays = {}
    for name in ("mean", "scale", "low", "high"):
        arrays[name] = np.array(record[name])
    layers = []
    for layer in record["layers"]:
        layers.append((np.array(layer["weight"]), np.array(layer["bias"])))
    return Predictor(
        names=record["names"], layers=layers, caution=record["caution"], **arrays
    )


def rounded(x: np.ndarray) -> Any:
    """Nested lists of numbers with five digits."""
    if x.ndim:
        return [rounded(row) for row in x]
    return float(f"{x:.5g}")
