"""Learned factors of the step size, for tests."""

import torch

from ngopt.learned_step.features import FEATURES
from ngopt.learned_step.predictor import LearnedStep, StepPredictor
from ngopt.pretrained import LearnedOptimizer
from ngopt.soap.soap import Soap


def random_predictor(slope: float = 0.0) -> StepPredictor:
    """Of random weights, fitted to no data: every network is near a training run.

    slope: scale of the output for slopes.
    """
    torch.manual_seed(1)
    count = len(FEATURES)
    output = torch.randn(2, 4, 1)
    return StepPredictor(
        mean=torch.zeros(count),
        scale=torch.ones(count),
        hidden=0.1 * torch.randn(2, count, 4),
        hidden_bias=torch.zeros(2, 1, 4),
        output=torch.cat((output, slope * output), 2),
        output_bias=torch.zeros(2, 1, 2),
        caution=torch.tensor([0.1, 0.1]),
        points=torch.zeros(3, count),
        trusted=torch.ones(3),
        reach=torch.tensor(100.0),
        longest=torch.tensor(10.0),
    )


def learned(predictor: StepPredictor | None) -> LearnedOptimizer:
    """The default with this factor; None: it is 1."""
    multiplier = None if predictor is None else LearnedStep(predictor)
    return Soap(multiplier=multiplier)
