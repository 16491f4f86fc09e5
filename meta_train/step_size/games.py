"""Generative adversarial networks (Goodfellow et al. 2014): two networks, one training.

Each has gradients of its own loss alone, so that one optimizer can step both at once.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from meta_train.step_size.networks import NetworkSettings, mlp_between
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
        slopes = torch.zeros_like(fixed)
        if self.training:
            slopes = self._slopes(real) + self._slopes(points)
        logits = self.critic(real), self.critic(points), fixed
        return torch.cat((*logits, slopes, fake), 1)

    def _slopes(self, points: Tensor) -> Tensor:
        """Squared gradients of the critic at points, (b, 1)."""
        slopes = grad(lambda x: self.critic(x).sum())(points)
        return slopes.square().sum(1, keepdim=True)


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
    real, fake, fixed, slopes = outputs[:, :4].unbind(1)
    critic = F.softplus(-real) + F.softplus(fake) + 0.5 * penalty * slopes
    return (critic + F.softplus(-fixed)).mean()


def distance(outputs: Tensor, points: Tensor) -> Tensor:
    """Energy distance (Szekely and Rizzo 2013) of generated and real points."""
    fake = outputs[:, 4:]
    between = _mean_distance(fake, points)
    within = _mean_distance(fake, fake) + _mean_distance(points, points)
    return 2 * between - within


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    differences = x.unsqueeze(1) - y.unsqueeze(0)
    squares = differences.square().sum(2)
    return (squares + 1e-12).sqrt().mean()
