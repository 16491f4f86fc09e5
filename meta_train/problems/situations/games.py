"""Generative adversarial networks on points in the plane."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from harness.random import seeded
from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import at_most
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import DrawnProblem, device_of

AVERAGE_DECAY = 0.98  # a step
EVALUATED = (
    4096  # points; the distance of two samples of one distribution is about .001
)


class Players(nn.Module):
    """A generator of points in the plane, and a critic that classifies points.

    Buffers hold the moving average of the generator's weights (Yazici et al. 2019).
    """

    def __init__(self, noise: int, width: int):
        super().__init__()
        self.noise = noise
        self.generator = mlp((noise, width, width, 2))
        self.critic = mlp((2, width, width, 1))
        # the relativistic losses do not depend on it
        self.critic[-1].register_parameter("bias", None)
        self.average = deepcopy(self.generator)
        for module in self.average.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, p.detach().clone())

    def generate(self, count: int) -> Tensor:
        """Points (count, 2)"""
        return self.generator(self._noise(count))

    def generate_by_average(self, count: int) -> Tensor:
        """Points (count, 2) of the generator with the averaged weights."""
        return self.average(self._noise(count))

    @torch.no_grad()
    def update_average(self) -> None:
        weights = dict(self.generator.named_parameters())
        for name, mean in self.average.named_buffers():
            mean.lerp_(weights[name], 1 - AVERAGE_DECAY)

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, self.noise).to(device_of(self))

    def fixed_critic(self, points: Tensor) -> Tensor:
        """Logits (b,) with gradients for the points alone, not for the critic."""
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        return functional_call(self.critic, weights, points).squeeze(1)


def logistic_game(players: Players, real: Tensor, penalty: float) -> Tensor:
    """The non-saturating losses of both players with R1 and R2, ().

    penalty: half of it times the mean squared slopes of the critic at real and at
    generated points (Mescheder et al. 2018).
    """
    fake = players.generate(len(real))
    logits, slope = _with_slopes(players.critic, real)
    other, other_slope = _with_slopes(players.critic, fake)
    critic = F.softplus(-logits).mean() + F.softplus(other).mean()
    generator = F.softplus(-players.fixed_critic(fake)).mean()
    return critic + 0.5 * penalty * (slope + other_slope) + generator


def relativistic_game(players: Players, real: Tensor, penalty: float) -> Tensor:
    """The losses of pairs of a real and a generated point (Huang et al. 2024), ().

    penalty: as in `logistic_game`.
    """
    fake = players.generate(len(real))
    logits, slope = _with_slopes(players.critic, real)
    other, other_slope = _with_slopes(players.critic, fake)
    critic = F.softplus(other - logits).mean() + 0.5 * penalty * (slope + other_slope)
    return critic + F.softplus(logits.detach() - players.fixed_critic(fake)).mean()


def _with_slopes(critic: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (b,) of points (b, 2), and the mean squared norm of their slopes, ()."""
    points = points.detach().requires_grad_()
    logits = critic(points).squeeze(1)
    slopes = torch.autograd.grad(logits.sum(), points, create_graph=True)[0]
    return logits, slopes.square().sum(1).mean()


@dataclass(frozen=True, eq=False)
class GanProblem(DrawnProblem):
    """A GAN on a mixture of narrow normal distributions (Goodfellow et al. 2014).

    One optimizer moves both players at once. loss: the energy distance of real points
    and those of the generator with averaged weights. accuracy: the share of covered
    modes times the share of points near a mode.

    modes: (count, 2). width: standard deviation of a mode. game: the sum of the losses
    of both players, each of which moves its own player.
    """

    build: Callable[[], Players]
    modes: Tensor
    width: float
    game: Callable[[Players, Tensor], Tensor]

    def draw_batch(self, step: int) -> Tensor:
        """Points (b, 2)"""
        return self._real(self.batch_size)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, Players)
        if model.training:
            model.update_average()
        return self.game(model, batch)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        assert isinstance(model, Players)
        count = at_most(EVALUATED, limit)
        with seeded(0, 4, split == "test"):
            real = self._real(count)
            fake = model.generate_by_average(count).cpu()
        return Metrics(energy_distance(real, fake).item(), self._mode_coverage(fake))

    def _real(self, count: int) -> Tensor:
        chosen = self.modes[torch.randint(len(self.modes), (count,))]
        return chosen + self.width * torch.randn(count, 2)

    def _mode_coverage(self, points: Tensor) -> float:
        distance, mode = torch.cdist(points, self.modes).min(1)
        is_near = distance < 3 * self.width
        counts = mode[is_near].bincount(minlength=len(self.modes))
        expected = len(points) / len(self.modes)
        share = (counts > 0.1 * expected).float().mean() * is_near.float().mean()
        return share.item()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Between two samples; 0 in the limit of equal distributions (Szekely 2003), ()."""
    within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
    return (2 * torch.cdist(x, y).mean() - within).clamp(min=0)


def ring(count: int) -> Tensor:
    angle = 2 * torch.pi * torch.arange(count) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


def square(side: int) -> Tensor:
    axis = torch.linspace(-1, 1, side)
    return torch.cartesian_prod(axis, axis)


_GAMES: Kind = (
    [
        GanProblem(
            "gan-ring-8",
            partial(Players, 8, 64),
            128,
            800,
            ring(8),
            0.1,
            partial(logistic_game, penalty=10.0),
        )
    ],
    [
        GanProblem(
            "gan-square-9",
            partial(Players, 4, 48),
            192,
            600,
            square(3),
            0.12,
            partial(relativistic_game, penalty=3.0),
        )
    ],
    [
        GanProblem(
            "gan-ring-5",
            partial(Players, 2, 80),
            256,
            500,
            ring(5),
            0.15,
            partial(logistic_game, penalty=6.0),
        )
    ],
)


KINDS: dict[str, Kind] = {
    "games": _GAMES,
}
