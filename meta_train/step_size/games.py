"""Generative adversarial networks (Goodfellow et al. 2014): two networks, one training.

Each has gradients of its own loss alone, so that one optimizer can step both at once.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from meta_train.problems.situations.games import energy_distance
from meta_train.step_size.networks import NetworkSettings, mlp_between, slopes
from meta_train.step_size.sources import Examples, Source


class Players(nn.Module):
    """A generator of points (b, size) from noise, and a critic of points.

    Inputs are noise and real points, (b, noise + size). Outputs are the critic's logits
    of real points, of generated points, and of generated points without gradients for
    the critic; squared slopes of the critic, 0 in evaluation; and generated points,
    (b, 4 + size).
    """

    def __init__(self, s: NetworkSettings):
        super().__init__()
        size = s.task.outputs
        self.noise = s.inputs - size
        self.generator = mlp_between(self.noise, size, s)
        self.critic = mlp_between(size, 1, s)

    def forward(self, x: Tensor) -> Tensor:
        noise, real = x[:, : self.noise], x[:, self.noise :]
        fake = self.generator(noise)
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        fixed = functional_call(self.critic, weights, (fake,))
        points = fake.detach()
        squares = torch.zeros_like(fixed)
        if self.training:
            for x in (real, points):
                squares = squares + slopes(self.critic, x).square().sum(1, keepdim=True)
        logits = self.critic(real), self.critic(points), fixed
        return torch.cat((*logits, squares, fake), 1)


def modes(source: Source) -> Examples:
    """Points in narrow clusters, which a generator should fill."""
    size = source.choice([2, 2, 4])
    count = source.choice([4, 8, 16])
    noise = source.choice([2, 4, 8])
    penalty = source.choice([0.3, 3.0])
    centers = 1.5 * source.normal(count, size)
    chosen = source.integers(count, source.examples)
    points = centers[chosen] + 0.12 * source.normal(source.examples, size)
    inputs = torch.cat((source.normal(source.examples, noise), points), 1)
    return Examples(inputs, points, partial(game, penalty=penalty), size, distance)


def game(outputs: Tensor, points: Tensor, penalty: float) -> Tensor:
    """Both players' non-saturating losses, and the critic's mean squared slopes.

    These are R1 and R2 of Mescheder et al. 2018, times half of `penalty`.
    """
    real, fake, fixed, squares = outputs[:, :4].unbind(1)
    critic = F.softplus(-real) + F.softplus(fake) + 0.5 * penalty * squares
    return (critic + F.softplus(-fixed)).mean()


def distance(outputs: Tensor, points: Tensor) -> Tensor:
    """Energy distance of generated and real points."""
    return energy_distance(outputs[:, 4:], points)
