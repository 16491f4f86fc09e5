"""Policy gradients: bandits and actor-critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import EVALUATED, at_most, fixed
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import DrawnProblem, device_of

REGRET_FLOOR = 2e-2  # added to the regret, so that regrets far below it count as equal
CARTS = 2048  # that are evaluated


class Policies(nn.Module):
    """Logits of the actions of several independent bandits, all equal at first."""

    def __init__(self, bandits: int, actions: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(bandits, actions))

    def forward(self, states: Tensor) -> Tensor:
        """states: (b, d), not used; returns (b, bandits, actions)"""
        return self.logits.expand(len(states), -1, -1)


@dataclass(frozen=True, eq=False)
class BanditProblem(DrawnProblem):
    """REINFORCE on bandits, with states or without (Williams 1992).

    loss: the mean regret, by the mean rewards, plus `REGRET_FLOOR`.

    rewards: states (b, d) -> mean rewards (b, ..., actions); training adds noise of
    standard deviation 1. dimensions: of a state.
    """

    rewards: Callable[[Tensor], Tensor]
    dimensions: int = 1

    def draw_batch(self, step: int) -> Tensor:
        """States (b, d)"""
        return torch.randn(self.batch_size, self.dimensions)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        log_probabilities = model(batch).log_softmax(-1)
        action = sampled(log_probabilities)
        reward = self.rewards(batch).gather(-1, action)
        reward = reward + torch.randn(reward.shape).to(reward.device)
        # a sum over bandits, so that each has the gradient that it would have alone
        gained = (reward * log_probabilities.gather(-1, action)).squeeze(-1)
        return -gained.mean(0).sum()

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        with seeded(0, 4, split == "test"):
            states = torch.randn(at_most(EVALUATED, limit), self.dimensions)
        states = states.to(device_of(model))
        rewards = self.rewards(states)
        gained = (model(states).softmax(-1) * rewards).sum(-1)
        regret = (rewards.amax(-1) - gained).mean()
        return Metrics(regret.item() + REGRET_FLOOR, None)


def sampled(log_probabilities: Tensor) -> Tensor:
    """Actions (..., 1) with these probabilities (..., actions), drawn on the host."""
    probabilities = log_probabilities.detach().exp().cpu()
    action = torch.multinomial(probabilities.flatten(0, -2), 1)
    return action.view(*probabilities.shape[:-1], 1).to(log_probabilities.device)


def arms(states: Tensor, bandits: int, actions: int, seed: int) -> Tensor:
    """Rewards (b, bandits, actions) that are the same in every state."""
    rewards = fixed(bandits, actions, seed=seed).to(states.device)
    return rewards.expand(len(states), -1, -1)


def arms_by_state(states: Tensor, count: int) -> Tensor:
    """Rewards (b, count) that are linear in the state."""
    return states @ fixed(states.shape[1], count, seed=15).to(states.device)


class ActorCritic(nn.Module):
    """Logits of actions, and the value of a state."""

    def __init__(self, states: int, actions: int, width: int):
        super().__init__()
        self.actor = mlp((states, width, width, actions), nn.Tanh)
        self.critic = mlp((states, width, width, 1), nn.Tanh)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states: (..., d); returns (..., actions) and (...,)"""
        flat, shape = states.flatten(0, -2), states.shape[:-1]
        return (
            self.actor(flat).unflatten(0, shape),
            self.critic(flat).squeeze(-1).unflatten(0, shape),
        )


@dataclass(frozen=True, eq=False)
class CartProblem(DrawnProblem):
    """Advantage actor-critic on carts that should come to rest at 0 (Mnih et al. 2016).

    Advantages are normalised in each batch, and returns are means over the horizon.
    A cart has a position and a speed; actions push it left, not at all, or right. loss:
    the mean cost of a step, position^2 + .1 speed^2 of at most 4, over episodes.

    length: of an episode.
    """

    length: int = 20
    discount: float = 0.9

    def draw_batch(self, step: int) -> Tensor:
        """First states (b, 2)"""
        return torch.randn(self.batch_size, 2)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        with torch.no_grad():
            states, actions, costs = self._episode(model, batch)
            returns = torch.zeros_like(costs)
            later = model(states[-1])[1]
            for t in reversed(range(self.length)):
                gain = (self.discount - 1) * costs[t]
                later = returns[t] = gain + self.discount * later
        logits, values = model(states[:-1])
        log_probabilities = logits.log_softmax(-1)
        taken = log_probabilities.gather(-1, actions).squeeze(-1)
        advantage = (returns - values).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean()
        values_loss = (returns - values).square().mean()
        return -(taken * advantage).mean() + 0.5 * values_loss - 0.01 * entropy

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        with seeded(0, 4, split == "test"):
            first = torch.randn(at_most(CARTS, limit), 2)
            _, _, costs = self._episode(model, first.to(device_of(model)))
        return Metrics(costs.mean().item(), None)

    def _episode(
        self, model: nn.Module, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States (length + 1, b, 2), actions (length, b, 1), costs of later states."""
        states, actions, costs = [state], [], []
        for _ in range(self.length):
            action = sampled(model(state)[0].log_softmax(-1))
            position, speed = state.unbind(1)
            speed = 0.95 * speed + 0.3 * (action.squeeze(1) - 1)
            position = position + 0.3 * speed
            state = torch.stack([position, speed], 1).clamp(-5, 5)
            states.append(state)
            actions.append(action)
            costs.append((position.square() + 0.1 * speed.square()).clamp(max=4))
        return torch.stack(states), torch.stack(actions), torch.stack(costs)


TEN_ARMS = partial(arms, bandits=64, actions=10, seed=13)
EIGHT_ARMS = partial(arms, bandits=96, actions=8, seed=14)
BY_STATE = partial(arms_by_state, count=5)


_REWARDS: Kind = (
    [
        BanditProblem("bandits-10", partial(Policies, 64, 10), 4, 600, TEN_ARMS),
        CartProblem("cart-64", partial(ActorCritic, 2, 3, 32), 64, 80),
    ],
    [
        BanditProblem("bandits-8", partial(Policies, 96, 8), 4, 400, EIGHT_ARMS),
        CartProblem("cart-32", partial(ActorCritic, 2, 3, 64), 32, 120),
    ],
    [
        BanditProblem("bandit-states", partial(mlp, (6, 32, 5)), 64, 600, BY_STATE, 6),
        CartProblem("cart-128", partial(ActorCritic, 2, 3, 48), 128, 60),
    ],
)


KINDS: dict[str, Kind] = {
    "rewards": _REWARDS,
}
