"""Fits a `StepPredictor` to gains: too long a step costs more than too short a one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from meta_train.step_size.outcomes import Data, gains_at
from meta_train.training.round_weights import round_mantissa
from ngopt.learned_step.features import FEATURES, LOG_STEPS
from ngopt.learned_step.predictor import StepPredictor

LOSS_WEIGHT = 4.0  # a loss counts as much as a gain of this many times its size
LEARNING_RATE, LAST_SHARE = 0.02, 0.02  # of Adam; it decays to this share
LEAST_SCALE = 1e-2  # of features that hardly vary
POINT_BITS = 8  # of mantissa, of the points: a smaller file in a zipped wheel


@dataclass(frozen=True)
class Settings:
    """How a predictor is fitted.

    caution, reach: see `StepPredictor`. penalty: of squared weights. points: number of
    typical trainings.
    """

    width: int = 16
    caution: tuple[float, float] = (1.0, 1.0)
    reach: float = math.inf
    members: int = 16
    penalty: float = 1e-3
    steps: int = 300
    points: int = 512


def utility(gains: Tensor) -> Tensor:
    """Gains, with losses weighted more."""
    return torch.where(gains < 0, LOSS_WEIGHT * gains, gains)


def fitted(data: Data, settings: Settings) -> StepPredictor:
    """A predictor of the trainings of `data`, which trusts all of them.

    Each is two examples: one seed with names of parameters, one without.
    """
    x = torch.tensor(data.x[:, [0, 1], [0, 1]]).flatten(0, 1)
    mean, scale = x.mean(0), x.std(0).clamp(min=LEAST_SCALE)
    gains = torch.tensor(data.gains.mean(2).repeat(2, 0))
    weights = bootstrapped(data.kinds.repeat(2), settings.members)
    inputs = ((x - mean) / scale).float()
    weights = weights * x.any(1)  # without matrices nothing is predicted
    points = min(settings.points, len(data.kinds))
    kmeans = KMeans(points, n_init="auto", random_state=0)
    centers = kmeans.fit(inputs.numpy()).cluster_centers_
    predictor = StepPredictor(
        mean,
        scale,
        *_initial(x.shape[1], settings),
        caution=torch.tensor(settings.caution),
        points=round_mantissa(torch.tensor(centers), POINT_BITS),
        trusted=torch.ones(points),
        reach=torch.tensor(settings.reach),
        longest=x[:, FEATURES.index(LOG_STEPS)].max(),
    )
    return _trained(predictor, inputs, gains.float(), weights, settings)


def trusting(predictor: StepPredictor, data: Data, gains: np.ndarray) -> StepPredictor:
    """Trusts the points near which predictions lowered the loss.

    gains: of predictors that were fitted without each training, (n,).
    """
    x = torch.tensor(data.x).float().flatten(1, 2)  # 2 graphs and 2 seeds
    inputs = (x.flatten(0, 1) - predictor.mean) / predictor.scale
    nearest = torch.cdist(inputs, predictor.points).argmin(1)
    useful = utility(torch.tensor(gains).float())
    sums = torch.zeros(len(predictor.points))
    sums.index_add_(0, nearest, useful.repeat_interleave(x.shape[1]))
    return predictor._replace(trusted=(sums > 0).float())


def _trained(
    predictor: StepPredictor,
    inputs: Tensor,
    gains: Tensor,
    weights: Tensor,
    settings: Settings,
) -> StepPredictor:
    """inputs: (n, d). gains: (n, 4). weights: of examples, (members, n)."""
    names = "hidden", "hidden_bias", "output", "output_bias"
    params = [getattr(predictor, name).requires_grad_() for name in names]
    opt = torch.optim.Adam(params, LEARNING_RATE)
    falling = torch.optim.lr_scheduler.LinearLR(opt, 1.0, LAST_SHARE, settings.steps)
    repeated = gains.repeat(settings.members, 1)
    for _ in range(settings.steps):
        outputs = predictor.networks(inputs).flatten(0, 1)
        gain = utility(gains_at(outputs, repeated))
        penalty = sum(p.square().sum() for p in params[::2])
        loss = settings.penalty * penalty - (weights.flatten() * gain).sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
        falling.step()
    values = [x.detach().float() for x in predictor]
    return StepPredictor(*values)


def bootstrapped(kinds: np.ndarray, members: int) -> Tensor:
    """Weights (members, n) of examples, each member with its own kinds; sums are 1.

    So members disagree where kinds of training runs do.
    """
    names, codes = np.unique(kinds, return_inverse=True)
    random = np.random.RandomState(0)
    counts = random.multinomial(len(names), [1 / len(names)] * len(names), members)
    weights = counts[:, codes].astype(float)
    weights /= weights.sum(1, keepdims=True).clip(1e-12)
    return torch.tensor(weights, dtype=torch.float32)


def _initial(inputs: int, settings: Settings) -> Sequence[Tensor]:
    """Weights and biases of both layers."""
    generator = torch.Generator().manual_seed(0)
    members, width = settings.members, settings.width
    hidden = torch.rand(members, inputs, width, generator=generator)
    bias = torch.rand(members, 1, width, generator=generator)
    bound = inputs**-0.5
    output = torch.zeros(members, width, 2)
    output_bias = torch.zeros(members, 1, 2)
    return bound * (2 * hidden - 1), bound * (2 * bias - 1), output, output_bias
