"""Meta-gradients for tests: of one truncation, and by finite differences."""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def first_estimate(estimator, optimizee, learned, steps):
    """The estimate of the first truncation, and the state after it."""
    start = estimator.start(optimizee, learned)
    return estimator.estimate(optimizee, learned, start, steps)


def directional_derivative(function, metanet, step):
    """(direction, derivative) of a function of the metanet's weights in a random
    direction of norm about 1. step: of the central difference."""
    theta = parameters_to_vector(metanet.parameters()).detach()
    direction = torch.randn_like(theta) / len(theta) ** 0.5
    values = []
    for sign in (1, -1):
        vector_to_parameters(theta + sign * step * direction, metanet.parameters())
        values.append(function())
    vector_to_parameters(theta, metanet.parameters())
    return direction, (values[0] - values[1]) / (2 * step)
