"""Games and rewards: losses of which the gradient is not that of one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import EVALUATED, at_most, fixed
from meta_train.problems.situations.kinds import Kind
from tasks.common.random import seeded


class Players(nn.Module):
    """A generator of points in the plane, and a critic that classifies points."""

    def __init__(self, noise: int, width: int):
        super().__init__()
        self.noise = noise
        self.generator = mlp((noise, width, width, 2))
        self.critic = mlp((2, width, width, 1))

    def critic_logits(self, points: Tensor) -> Tensor:
        """Logits (b,) with gradients for the points alone, not for the critic."""
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        return functional_call(self.critic, weights, points).squeeze(1)


@dataclass(frozen=True, eq=False)
class GanProblem:
    """A GAN on a mixture of narrow normal distributions (Goodfellow et al. 2014).

    One optimizer moves both players at once. loss: the energy distance of samples;
    accuracy: the share of covered modes times the share of samples near a mode.
    """

    name: str
    modes: Tensor  # (count, 2)
    width: float  # of a mode, a standard deviation
    build: Callable[[], Players]
    batch_size: int
    steps: int

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> Tensor:
        """Points (b, 2)"""
        with seeded(seed, 1, step):
            return self._real(self.batch_size)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """The sum of the critic's loss and the generator's; each moves its own player."""
        assert isinstance(model, Players)
        fake = model.generator(torch.randn(len(batch), model.noise))
        real, own = model.critic(batch), model.critic(fake.detach())
        critic = F.softplus(-real).mean() + F.softplus(own).mean()
        return critic + F.softplus(-model.critic_logits(fake)).mean()

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        assert isinstance(model, Players)
        count = at_most(EVALUATED, limit)
        with seeded(0, 4, split == "test"):
            real = self._real(count)
            fake = model.generator(torch.randn(count, model.noise))
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
    """Between the distributions of two samples, 0 where they are one (Szekely 2003), ()."""
    within = torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
    return (2 * torch.cdist(x, y).mean() - within).clamp(min=0)


def ring(count: int) -> Tensor:
    angle = 2 * torch.pi * torch.arange(count) / count
    return 2 * torch.stack([angle.cos(), angle.sin()], 1)


def square(side: int) -> Tensor:
    axis = torch.linspace(-2, 2, side)
    return torch.cartesian_prod(axis, axis)


class Policy(nn.Module):
    """Logits of actions that depend on nothing, all equal at first."""

    def __init__(self, actions: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(actions))

    def forward(self, states: Tensor) -> Tensor:
        """states: (b, d); returns (b, actions)"""
        return self.logits.expand(len(states), -1)


@dataclass(frozen=True, eq=False)
class BanditProblem:
    """REINFORCE on a bandit, with contexts or without (Williams 1992).

    rewards: states (b, d) -> mean rewards (b, actions); training
    adds noise of standard deviation 1. loss: regret by the mean rewards, plus .001, so
    that its logarithm is finite.
    """

    name: str
    rewards: Callable[[Tensor], Tensor]
    dimensions: int
    build: Callable[[], nn.Module]
    batch_size: int
    steps: int

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> Tensor:
        """States (b, d)"""
        with seeded(seed, 1, step):
            return torch.randn(self.batch_size, self.dimensions)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        log_shares = model(batch).log_softmax(1)
        action = torch.multinomial(log_shares.detach().exp(), 1)
        reward = self.rewards(batch).gather(1, action) + torch.randn(len(batch), 1)
        return -(reward * log_shares.gather(1, action)).mean()

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        count = at_most(EVALUATED, limit)
        with seeded(0, 4, split == "test"):
            states = torch.randn(count, self.dimensions)
        rewards = self.rewards(states)
        got = (model(states).softmax(1) * rewards).sum(1)
        regret = (rewards.amax(1) - got).mean()
        return Metrics(regret.item() + 1e-3, None)


def arms(states: Tensor, count: int, seed: int) -> Tensor:
    """Rewards that are the same in every state."""
    return fixed(count, seed=seed).expand(len(states), -1)


def arms_by_state(states: Tensor, count: int) -> Tensor:
    """Rewards that are linear in the state."""
    return states @ fixed(states.shape[1], count, seed=15)


class ActorCritic(nn.Module):
    """Logits of actions and the value of a state, from shared layers."""

    def __init__(self, states: int, actions: int, width: int):
        super().__init__()
        self.layers = mlp((states, width, width))
        self.actor = nn.Linear(width, actions)
        self.critic = nn.Linear(width, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states: (..., d); returns (..., actions) and (...,)"""
        hidden = (
            self.layers(states.flatten(0, -2)).relu().unflatten(0, states.shape[:-1])
        )
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


@dataclass(frozen=True, eq=False)
class CartProblem:
    """Advantage actor-critic on carts that have to come to rest at 0 (Mnih et al. 2016).

    A cart has a place and a speed; actions push it left, not at all, or right. loss: the
    mean cost of a step, place^2 + .1 speed^2 of at most 4, over episodes.
    """

    name: str
    build: Callable[[], nn.Module]
    batch_size: int  # carts
    steps: int
    length: int = 20  # of an episode
    discount: float = 0.9

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return self.build()

    def batch(self, seed: int, step: int) -> Tensor:
        """First states (b, 2)"""
        with seeded(seed, 1, step):
            return torch.randn(self.batch_size, 2)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            states, actions, costs = self._episode(model, batch)
            returns = torch.zeros_like(costs)
            later = model(states[-1])[1]
            for t in reversed(range(self.length)):
                later = returns[t] = -costs[t] + self.discount * later
        logits, values = model(states[:-1])
        log_shares = logits.log_softmax(-1)
        taken = log_shares.gather(-1, actions[..., None]).squeeze(-1)
        advantage = (returns - values).detach()
        entropy = -(log_shares.exp() * log_shares).sum(-1).mean()
        values_loss = (returns - values).square().mean()
        return -(taken * advantage).mean() + 0.5 * values_loss - 0.01 * entropy

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        count = at_most(512, limit)
        with seeded(0, 4, split == "test"):
            _, _, costs = self._episode(model, torch.randn(count, 2))
        return Metrics(costs.mean().item(), None)

    def _episode(
        self, model: nn.Module, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States (length + 1, b, 2), actions (length, b) and costs of the states after."""
        states, actions, costs = [state], [], []
        for _ in range(self.length):
            action = torch.multinomial(model(state)[0].softmax(-1), 1).squeeze(1)
            place, speed = state.unbind(1)
            speed = 0.95 * speed + 0.3 * (action - 1)
            place = place + 0.3 * speed
            state = torch.stack([place, speed], 1).clamp(-5, 5)
            states.append(state)
            actions.append(action)
            costs.append((place.square() + 0.1 * speed.square()).clamp(max=4))
        return torch.stack(states), torch.stack(actions), torch.stack(costs)


TEN_ARMS = partial(arms, count=10, seed=13)
EIGHT_ARMS = partial(arms, count=8, seed=14)
BY_STATE = partial(arms_by_state, count=5)


_GAMES: Kind = (
    [GanProblem("gan-ring-8", ring(8), 0.1, partial(Players, 8, 64), 128, 1500)],
    [
        GanProblem(
            "gan-square-9",
            square(3),
            0.15,
            partial(Players, 4, 48),
            64,
            2000,
        )
    ],
    [GanProblem("gan-ring-5", ring(5), 0.2, partial(Players, 2, 96), 256, 1000)],
)


_REWARDS: Kind = (
    [
        BanditProblem("bandit-10", TEN_ARMS, 1, partial(Policy, 10), 1, 1000),
        CartProblem("cart-64", partial(ActorCritic, 2, 3, 32), 64, 150),
    ],
    [
        BanditProblem("bandit-8", EIGHT_ARMS, 1, partial(Policy, 8), 4, 400),
        CartProblem("cart-32", partial(ActorCritic, 2, 3, 64), 32, 250),
    ],
    [
        BanditProblem("bandit-states", BY_STATE, 6, partial(mlp, (6, 32, 5)), 16, 600),
        CartProblem("cart-128", partial(ActorCritic, 2, 3, 48), 128, 80),
    ],
)


KINDS: dict[str, Kind] = {
    "games": _GAMES,
    "rewards": _REWARDS,
}
