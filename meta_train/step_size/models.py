"""Models that predict the best step size, from plain to rich.

All map features (n, d) to log2 multipliers (n,). They are fitted to gains (n, m) at
`log_multipliers` of trainings of some kinds, names (n,), not to best multipliers: a
step that is too long costs more than one that is too short.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.multioutput import MultiOutputRegressor
from torch import Tensor

from meta_train.step_size.outcomes import interpolated, refined
from ngopt.learned_step.predictor import Layers, Scaling, cautious_prediction, outputs

LOSS_WEIGHT = 4.0  # a loss counts as much as a gain of this many times its size
LEARNING_RATE = 0.02  # of Adam, decays to 2 %
LEAST_SCALE = 1e-2  # of features that hardly vary


def utility(gains: np.ndarray) -> np.ndarray:
    """Gains, with losses weighted more."""
    return np.where(gains < 0, LOSS_WEIGHT * gains, gains)


class Constant:
    """The best multiplier for all."""

    def __init__(self, log_multipliers: np.ndarray):
        self.log_multipliers = log_multipliers
        self.best = 0.0

    def fit(self, x: np.ndarray, gains: np.ndarray, kinds: np.ndarray) -> None:
        fine, curves = refined(self.log_multipliers, gains)
        means = utility(curves).mean(0)
        self.best = float(fine[means.argmax()])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.full(len(x), self.best)


class Predictor(NamedTuple):
    """Maps features to log2 multipliers: one ensemble of a `StepPredictor`.

    Tensors are float64. caution: standard deviations of the networks' outputs by which
    predictions are nearer to 0.
    """

    scaling: Scaling
    layers: Layers
    caution: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """log2 multipliers (n,) of features (n, d); near 0 beyond the data's range."""
        features = torch.as_tensor(x)
        caution = torch.tensor(self.caution)
        found = cautious_prediction(features, self.scaling, self.layers, caution)
        return found.numpy()


@dataclass(frozen=True)
class Settings:
    """Of an `Ensemble`.

    width: of the hidden layer; 0 for linear maps. caution: see `Predictor`. penalty: of
    squared weights.
    """

    width: int = 8
    caution: float = 0.5
    members: int = 8
    penalty: float = 1e-3
    steps: int = 300


DEFAULT = Settings()
OF_SLOPES = Settings(caution=1.0)  # there are fewer trainings with slopes


class Ensemble:
    """Small MLPs or linear maps, trained on the gains themselves.

    Each member is trained on kinds that are drawn with replacement.
    """

    def __init__(self, log_multipliers: np.ndarray, settings: Settings = DEFAULT):
        self.log_multipliers = log_multipliers
        self.settings = settings
        self.predictor: Predictor | None = None

    def fit(self, x: np.ndarray, gains: np.ndarray, kinds: np.ndarray) -> None:
        mean = x.mean(0)
        scale = x.std(0).clip(LEAST_SCALE)
        fine, curves = refined(self.log_multipliers, gains)
        weights = bootstrapped(kinds, self.settings.members)
        layers = self._trained(
            torch.tensor((x - mean) / scale, dtype=torch.float32),
            torch.tensor(fine, dtype=torch.float32),
            torch.tensor(utility(curves), dtype=torch.float32),
            torch.tensor(weights, dtype=torch.float32),
        )
        scaling = Scaling(*map(torch.tensor, (mean, scale, x.min(0), x.max(0))))
        self.predictor = Predictor(scaling, layers, self.settings.caution)

    def predict(self, x: np.ndarray) -> np.ndarray:
        assert self.predictor is not None
        return self.predictor.predict(x)

    def _trained(
        self, inputs: Tensor, fine: Tensor, curves: Tensor, weights: Tensor
    ) -> Layers:
        """inputs: (n, d). fine: (f,). curves: (n, f). weights: of examples, (e, n)."""
        s = self.settings
        params = _initial(inputs.shape[1], s.width, s.members)
        matrices = params[::2]
        opt = torch.optim.Adam(params, LEARNING_RATE)
        falling = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.02, s.steps)
        repeated = curves.repeat(s.members, 1)
        for _ in range(s.steps):
            place = outputs(inputs, _layers(params))
            gain = interpolated(place.flatten(), fine, repeated)
            penalty = sum(p.square().sum() for p in matrices)
            loss = s.penalty * penalty - (weights.flatten() * gain).sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            falling.step()
        return _layers([p.detach().double() for p in params])


def bootstrapped(kinds: np.ndarray, members: int) -> np.ndarray:
    """Weights (members, n) of examples, each member with its own kinds; sums are 1."""
    names, codes = np.unique(kinds, return_inverse=True)
    random = np.random.RandomState(0)
    chances = np.full(len(names), 1 / len(names))
    counts = random.multinomial(len(names), chances, members)
    weights = counts[:, codes].astype(float)
    return weights / weights.sum(1, keepdims=True).clip(1e-12)


def _initial(inputs: int, width: int, members: int) -> list[Tensor]:
    """Weights and biases in turn; shapes as in `Layers`."""
    generator = torch.Generator().manual_seed(0)
    params = []
    if width:
        bound = inputs**-0.5
        for rows in (inputs, 1):
            uniform = torch.rand(members, rows, width, generator=generator)
            params.append(bound * (2 * uniform - 1))
    params.append(torch.zeros(members, width or inputs, 1))
    params.append(torch.zeros(members, 1, 1))
    return [p.requires_grad_() for p in params]


def _layers(params: Sequence[Tensor]) -> Layers:
    return list(zip(params[::2], params[1::2], strict=True))


class Trees:
    """Gradient-boosted trees for the curve of gains: one model per multiplier."""

    def __init__(self, log_multipliers: np.ndarray, count: int = 80):
        self.log_multipliers = log_multipliers
        model = GradientBoostingRegressor(
            n_estimators=count,
            max_depth=3,
            learning_rate=0.05,
            subsample=0.5,
            min_samples_leaf=10,
            random_state=0,
        )
        self.models = MultiOutputRegressor(model)

    def fit(self, x: np.ndarray, gains: np.ndarray, kinds: np.ndarray) -> None:
        self.models.fit(x, utility(gains))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return best_of(self.models.predict(x), self.log_multipliers)


Model = Constant | Ensemble | Trees


def best_of(curves: np.ndarray, log_multipliers: np.ndarray) -> np.ndarray:
    """The vertex of a parabola through the best of m values and its neighbours."""
    best = curves.argmax(1)
    best = best.clip(1, len(log_multipliers) - 2)
    n = np.arange(len(curves))
    left = curves[n, best - 1]
    mid = curves[n, best]
    right = curves[n, best + 1]
    bend = np.minimum(left - 2 * mid + right, -1e-9)
    shift = (left - right) / (2 * bend)
    step = log_multipliers[1] - log_multipliers[0]
    return log_multipliers[best] + shift.clip(-1, 1) * step
