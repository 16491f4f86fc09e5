"""Learned factors of the step size, for tests."""

import torch

from ngopt.base.network_features import FEATURES
from ngopt.base.soap import Soap
from ngopt.base.step_predictor import StepPredictor
from ngopt.pretrained import LearnedOptimizer


def random_predictor() -> StepPredictor:
    """Of random weights, fitted to no data: every feature is within its range."""
    torch.manual_seed(1)
    count = len(FEATURES)
    return StepPredictor(
        mean=torch.zeros(count),
        scale=torch.ones(count),
        low=torch.full((count,), -20.0),
        high=torch.full((count,), 20.0),
        hidden=0.1 * torch.randn(2, count, 4),
        hidden_bias=torch.zeros(2, 1, 4),
        output=torch.randn(2, 4, 1),
        output_bias=torch.zeros(2, 1, 1),
        caution=torch.tensor(0.1),
    )


def learned(predictor: StepPredictor | None) -> LearnedOptimizer:
    """The default with this factor; None: it is 1."""
    return LearnedOptimizer(base=Soap(predictor=predictor))
