"""Policy gradients: bandits and actor-critic."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import fixed
from meta_train.problems.situations.problems import SampledProblem
from meta_train.problems.supervised import device_of

# Added to the reported regret. Differences between much smaller regrets then do not
# matter.
REGRET_FLOOR = 2e-2
EPISODE = 20  # steps of a cart
DISCOUNT = 0.9  # of its returns


class Policies(nn.Module):
    """Logits of the actions of several independent bandits, initialised to zero."""

    def __init__(self, bandits: int, actions: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(bandits, actions))

    def forward(self, states: Tensor) -> Tensor:
        """states: (b, d), of which only b is used; returns (b, bandits, actions)"""
        return self.logits.expand(len(states), -1, -1)


@dataclass(frozen=True, eq=False)
class BanditProblem(SampledProblem):
    """REINFORCE on bandits, with states or without (Williams 1992).

    The reported loss is the expected regret plus `REGRET_FLOOR`.

    rewards: states (b, d) -> mean rewards (b, ..., actions). Training adds normal noise
    with standard deviation 1. dimensions: the size d of a state.
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
        objective = (reward * log_probabilities.gather(-1, action)).squeeze(-1)
        # the sum over bandits keeps their gradients independent
        return -objective.mean(0).sum()

    def measure(self, model: nn.Module, count: int) -> Metrics:
        states = torch.randn(count, self.dimensions).to(device_of(model))
        rewards = self.rewards(states)
        expected = (model(states).softmax(-1) * rewards).sum(-1)
        regret = (rewards.amax(-1) - expected).mean()
        return Metrics(regret.item() + REGRET_FLOOR, None)


def sampled(log_probabilities: Tensor) -> Tensor:
    """Random actions (..., 1) with log probabilities (..., actions), from the CPU."""
    probabilities = log_probabilities.detach().exp()
    action = torch.multinomial(probabilities.cpu().flatten(0, -2), 1)
    return action.view(*probabilities.shape[:-1], 1).to(probabilities.device)


def arms(states: Tensor, bandits: int, actions: int, seed: int) -> Tensor:
    """Rewards (b, bandits, actions) that do not depend on the state."""
    rewards = fixed(bandits, actions, seed=seed).to(states.device)
    return rewards.expand(len(states), -1, -1)


def arms_by_state(states: Tensor, count: int) -> Tensor:
    """Rewards (b, count) that are linear in the state."""
    weights = fixed(states.shape[1], count, seed=15)
    return states @ weights.to(states.device)


class ActorCritic(nn.Module):
    """Logits of actions, and the value of a state."""

    def __init__(self, states: int, actions: int, width: int):
        super().__init__()
        self.actor = mlp((states, width, width, actions), nn.Tanh)
        self.critic = mlp((states, width, width, 1), nn.Tanh)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """states: (..., d); returns (..., actions) and (...,)"""
        shape = states.shape[:-1]
        flat = states.flatten(0, -2)
        logits = self.actor(flat).unflatten(0, shape)
        return logits, self.critic(flat).squeeze(-1).unflatten(0, shape)


class Episode(NamedTuple):
    """Carts at each step of an episode."""

    states: Tensor  # (length + 1, b, 2)
    actions: Tensor  # (length, b, 1)
    costs: Tensor  # (length, b), of the states after the actions


@dataclass(frozen=True, eq=False)
class CartProblem(SampledProblem):
    """Advantage actor-critic (Mnih et al. 2016) on carts that should stop at 0.

    A cart has a position and a speed. The three actions push it left, not at all, or
    right. The reported loss is the mean cost of a step: position^2 + .1 speed^2, at
    most 4. Advantages are normalised per batch, and returns are discounted means.
    """

    def draw_batch(self, step: int) -> Tensor:
        """Initial states (b, 2)"""
        return torch.randn(self.batch_size, 2)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        episode = self._episode(model, batch)
        returns = self._returns(model, episode)
        logits, values = model(episode.states[:-1])
        log_probabilities = logits.log_softmax(-1)
        taken = log_probabilities.gather(-1, episode.actions)
        errors = returns - values
        advantage = errors.detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean()
        policy_loss = -(taken.squeeze(-1) * advantage).mean()
        return policy_loss + 0.5 * errors.square().mean() - 0.01 * entropy

    @torch.no_grad()
    def _returns(self, model: nn.Module, episode: Episode) -> Tensor:
        """Discounted means of the negative costs from each step on, (length, b)."""
        returns = torch.zeros_like(episode.costs)
        _, later = model(episode.states[-1])
        for t in reversed(range(EPISODE)):
            later = (DISCOUNT - 1) * episode.costs[t] + DISCOUNT * later
            returns[t] = later
        return returns

    def measure(self, model: nn.Module, count: int) -> Metrics:
        initial = torch.randn(count, 2).to(device_of(model))
        return Metrics(self._episode(model, initial).costs.mean().item(), None)

    @torch.no_grad()
    def _episode(self, model: nn.Module, state: Tensor) -> Episode:
        """An episode from the initial states (b, 2)."""
        states, actions, costs = [state], [], []
        for _ in range(EPISODE):
            logits, _ = model(state)
            action = sampled(logits.log_softmax(-1))
            position, speed = state.unbind(1)
            speed = 0.95 * speed + 0.3 * (action.squeeze(1) - 1)
            position = position + 0.3 * speed
            state = torch.stack([position, speed], 1).clamp(-5, 5)
            states.append(state)
            actions.append(action)
            cost = position.square() + 0.1 * speed.square()
            costs.append(cost.clamp(max=4))
        return Episode(torch.stack(states), torch.stack(actions), torch.stack(costs))


# in turn for development, validation and test
PROBLEMS = {
    "bandits-10": BanditProblem(
        lambda: Policies(64, 10), 4, 600, partial(arms, bandits=64, actions=10, seed=13)
    ),
    "bandits-8": BanditProblem(
        lambda: Policies(96, 8), 4, 400, partial(arms, bandits=96, actions=8, seed=14)
    ),
    "bandit-states": BanditProblem(
        lambda: mlp((6, 32, 5)), 64, 600, partial(arms_by_state, count=5), dimensions=6
    ),
    "cart-64": CartProblem(lambda: ActorCritic(2, 3, 32), 64, 80),
    "cart-32": CartProblem(lambda: ActorCritic(2, 3, 64), 32, 120),
    "cart-128": CartProblem(lambda: ActorCritic(2, 3, 48), 128, 60),
}
