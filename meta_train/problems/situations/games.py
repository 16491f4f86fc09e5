"""Generative adversarial networks on points in the plane."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.problems import SampledProblem
from meta_train.problems.supervised import device_of
from tasks.networks.siren import pixel_grid

AVERAGE_DECAY = 0.98  # a step


class Players(nn.Module):
    """A generator of points in the plane and a critic of points.

    `average` is the generator with averaged weights (Yazici et al. 2019), as buffers.
    """

    def __init__(self, noise: int, width: int):
        super().__init__()
        self.noise = noise
        self.generator = mlp((noise, width, width, 2))
        self.critic = mlp((2, width, width, 1))
        # the relativistic losses do not depend on the last bias
        self.critic[-1].register_parameter("bias", None)
        self.average = deepcopy(self.generator)
        for module in self.average.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, p.detach().clone())

    def noises(self, count: int) -> Tensor:
        """Inputs of the generator, (count, noise)."""
        return torch.randn(count, self.noise).to(device_of(self))

    @torch.no_grad()
    def update_average(self) -> None:
        weights = dict(self.generator.named_parameters())
        for name, mean in self.average.named_buffers():
            mean.lerp_(weights[name], 1 - AVERAGE_DECAY)

    def fixed_critic(self, points: Tensor) -> Tensor:
        """Logits (b,) with gradients for the points but not for the critic."""
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        return functional_call(self.critic, weights, points).squeeze(1)


def game(
    players: Players, real: Tensor, penalty: float, is_relativistic: bool = False
) -> Tensor:
    """The sum of both players' losses and gradient penalties, ().

    Each loss has gradients for its own player only.

    is_relativistic: losses of Huang et al. 2024; else the non-saturating ones of
    Goodfellow et al. 2014. penalty: twice the weight of the mean squared gradients of
    the critic at real (R1) and at generated points (R2, Mescheder et al. 2018).
    """
    fake = players.generator(players.noises(len(real)))  # (b, 2)
    real_logits, real_slope = _with_slopes(players.critic, real)
    fake_logits, fake_slope = _with_slopes(players.critic, fake)
    logits = players.fixed_critic(fake)
    if is_relativistic:
        critic = F.softplus(fake_logits - real_logits).mean()
        logits = logits - real_logits.detach()
    else:
        critic = F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    critic = critic + 0.5 * penalty * (real_slope + fake_slope)
    return critic + F.softplus(-logits).mean()


def _with_slopes(critic: nn.Module, points: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (b,) of points (b, 2), and their mean squared gradient norm, ()."""
    points = points.detach().requires_grad_()
    logits = critic(points).squeeze(1)
    (slopes,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
    return logits, slopes.square().sum(1).mean()


@dataclass(frozen=True, eq=False)
class GanProblem(SampledProblem):
    """A GAN on a mixture of narrow normal distributions (Goodfellow et al. 2014).

    One optimizer updates both players in the same step. The reported loss is the energy
    distance between real points and those of the generator with averaged weights. The
    accuracy is the share of covered modes times the share of points near a mode.

    modes: means, (count, 2). width: standard deviation of a mode. penalty,
    is_relativistic: arguments of `game`.
    """

    # two samples of one distribution have a distance of .001
    evaluated: ClassVar[int] = 4096
    build: Callable[[], Players]
    modes: Tensor
    width: float
    penalty: float
    is_relativistic: bool = False

    def draw_batch(self, step: int) -> Tensor:
        """Points (b, 2)"""
        return self._real(self.batch_size)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, Players)
        if model.training:
            model.update_average()
        return game(model, batch, self.penalty, self.is_relativistic)

    def measure(self, model: nn.Module, count: int) -> Metrics:
        assert isinstance(model, Players)
        real = self._real(count)
        fake = model.average(model.noises(count)).cpu()
        return Metrics(energy_distance(real, fake).item(), self._mode_coverage(fake))

    def _real(self, count: int) -> Tensor:
        modes = torch.randint(len(self.modes), (count,))
        return self.modes[modes] + self.width * torch.randn(count, 2)

    def _mode_coverage(self, points: Tensor) -> float:
        count = len(self.modes)
        distance, mode = torch.cdist(points, self.modes).min(1)
        is_near = distance < 3 * self.width
        counts = mode[is_near].bincount(minlength=count)
        is_covered = counts > 0.1 * (len(points) / count)
        return (is_covered.float().mean() * is_near.float().mean()).item()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Energy distance of two samples (Szekely 2003), (); 0 for equal distributions."""
    within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
    return (2 * torch.cdist(x, y).mean() - within).clamp(min=0)


def ring(count: int) -> Tensor:
    angle = 2 * torch.pi * torch.arange(count) / count
    return torch.stack([angle.cos(), angle.sin()], 1)


# In turn for development, validation and test. Arguments: network, batch size, steps,
# modes, their width, and the penalty.
PROBLEMS = {
    "gan-ring-8": GanProblem(lambda: Players(8, 64), 128, 800, ring(8), 0.1, 10.0),
    "gan-square-9": GanProblem(
        lambda: Players(4, 48),
        192,
        600,
        pixel_grid(3, 3),
        0.12,
        3.0,
        is_relativistic=True,
    ),
    "gan-ring-5": GanProblem(lambda: Players(2, 80), 256, 500, ring(5), 0.15, 6.0),
}
