"""The learned part of the default: a factor of the step size for a whole network.

Small networks read what is known before the first step (`network_features`). They were
fitted to the losses of thousands of random trainings at seven step sizes
(`meta_train.step_size`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from ngopt.base.network_features import (
    horizon_features,
    matrices_of,
    shape_features,
    weight_features,
)
from ngopt.devices import precise_dtype
from ngopt.roles.from_graph import ParameterRole

MOST = 3.0  # largest |log2| of a factor
MARGIN = 0.2  # |log2| up to which predictions are noise
# Features of the horizon, of shapes and of weights, in this order.
FEATURES = (
    ("log steps", "log steps below 500"),
    (
        "log matrices",
        "norms per matrix",
        "log matrices without norms",
        "deep without norms",
        "biases per matrix",
        "log elements",
        "mean log fan",
        "largest log fan",
        "mean log rows",
        "share of convolutions",
        "share of blocks",
        "share of vectors",
        "share of tables",
        "has tables",
        "share of output",
        "log outputs",
    ),
    (
        "mean log size",
        "least log size",
        "largest log size",
        "first log size",
        "last log size",
        "zero matrices",
        "mean excess",
    ),
)


class StepPredictor(NamedTuple):
    """An ensemble of e networks with one hidden layer of width h; d features.

    The factor is 2 to the power of the mean output, of which `MARGIN` is cut off; it is
    1 for networks without matrices. It goes to 1 as features leave the range of the
    trainings that it was fitted to.
    """

    mean: Tensor  # of features, (d,)
    scale: Tensor
    low: Tensor  # range of standardised features, (d,)
    high: Tensor
    hidden: Tensor  # weights (e, d, h)
    hidden_bias: Tensor  # (e, 1, h)
    output: Tensor  # (e, h, 1)
    output_bias: Tensor  # (e, 1, 1)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> StepPredictor:
        """Raises ValueError if tensors are missing or have other shapes."""
        count = sum(map(len, FEATURES))
        names = set(cls._fields)
        if tensors.keys() != names or len(tensors["mean"]) != count:
            raise ValueError(
                f"step predictor: expected {', '.join(cls._fields)} of {count} "
                f"features; got {', '.join(sorted(tensors))}"
            )
        return cls(**tensors)

    def log_factor(self, features: Tensor) -> Tensor:
        """log2 of the factor, () of features (d,); (n,) of (n, d)."""
        own = [x.to(features) for x in self]
        mean, scale, low, high, hidden, hidden_bias, output, output_bias = own
        z = (features - mean) / scale
        inside = z.clamp(low, high)
        trust = (-(z - inside).abs().sum(-1)).exp()
        x = inside.reshape(1, -1, len(mean))
        x = torch.tanh(x @ hidden + hidden_bias)
        y = (x @ output + output_bias).squeeze(-1)
        y = softshrink(MOST * torch.tanh(y / MOST).mean(0), MARGIN)
        return trust * y.view(features.shape[:-1])


class NetworkFactor:
    """The factor of one network at its first step.

    roles, shapes: of all parameters of the network. positions: indices of n of these,
    whose weights are known.
    """

    def __init__(
        self,
        predictor: StepPredictor,
        roles: Sequence[ParameterRole],
        shapes: Sequence[Sequence[int]],
        total_steps: int,
        device: torch.device,
    ):
        known = horizon_features(total_steps) | shape_features(roles, shapes)
        values = [known[name] for names in FEATURES[:2] for name in names]
        dtype = precise_dtype(device)
        self._known = torch.tensor(values, dtype=dtype, device=device)
        self._matrices = matrices_of(roles)
        inverse = []
        for i in self._matrices:
            # PyTorch's initial weights are uniform in +-fan ** -.5
            inverse.append((3 * (roles[i].fan_in or 1 / 3)) ** 0.5)
        self._inverse = self._known.new_tensor(inverse)
        self._predictor = predictor

    def of(self, rms: Tensor, excesses: Mapping[int, Tensor]) -> Tensor:
        """The factor, ().

        rms: of all initial weights. excesses: `spectral_excess` of matrices, by index.
        """
        if not self._matrices:
            return self._known.new_ones(())
        own = torch.stack([rms[i] for i in self._matrices]).to(self._known)
        zero = self._known.new_zeros(())
        found = [excesses.get(i, zero).to(zero) for i in self._matrices]
        weights = weight_features(own * self._inverse, torch.stack(found))
        values = torch.stack([weights[name] for name in FEATURES[2]])
        features = torch.cat((self._known, values))
        return torch.exp2(self._predictor.log_factor(features))
