"""A fitted predictor of the step size: an ensemble of small networks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ngopt.base.step_predictor import Layers, Scaling, cautious_prediction


class Predictor(NamedTuple):
    """Maps features to log2 multipliers; `StepPredictor` with any number of layers.

    Tensors are float64. caution: standard deviations of the networks' outputs by which
    predictions are nearer to 0.
    """

    scaling: Scaling
    layers: Layers
    caution: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """log2 multipliers (n,) of features (n, d); near 0 beyond the data's range."""
        features = torch.as_tensor(x)
        found = cautious_prediction(features, self.scaling, self.layers, self.caution)
        return found.numpy()
