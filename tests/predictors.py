"""Learned factors of the step size, for tests."""

import torch

from ngopt.learned_step.features import FEATURES
from ngopt.learned_step.predictor import LearnedStep, StepPredictor
from ngopt.pretrained import LearnedOptimizer
from ngopt.soap.soap import Soap


def random_predictor(slope: float = 0.0) -> StepPredictor:
    """Of random weights, fitted to no data: every feature is within its range.

    slope: scale of the output of the networks for slopes.
    """
    torch.manual_seed(1)
    count = len(FEATURES)
    hidden = 0.1 * torch.randn(2, count, 4)
    output = torch.randn(2, 4, 1)
    return StepPredictor(
        mean=torch.zeros(2, count),
        scale=torch.ones(2, count),
        low=torch.full((2, count), -20.0),
        high=torch.full((2, count), 20.0),
        hidden=torch.stack((hidden, hidden)),
        hidden_bias=torch.zeros(2, 2, 1, 4),
        output=torch.stack((output, slope * output)),
        output_bias=torch.zeros(2, 2, 1, 1),
        caution=torch.tensor([0.1, 0.1]),
    )


def learned(predictor: StepPredictor | None) -> LearnedOptimizer:
    """The default with this factor; None: it is 1."""
    multiplier = None if predictor is None else LearnedStep(predictor)
    return Soap(multiplier=multiplier)
