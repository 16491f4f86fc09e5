"""Rates by parameter and time, by antithetic evolution over whole training runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meta_train.specialize.family import Family, HandRule, log_losses
from ngopt.specialized.rates import FEATURES, Rates

KNOTS = 5
WIDTH = 8  # of the MLP
PAIRS = 24  # of antithetic runs, each on a member of its own
SIGMA = 0.15  # of perturbations
META_LR = 0.06
BETAS = 0.9, 0.99  # of Adam, which makes the meta-updates
FIRST_SEED = 1_000_000  # of members for evolution


@dataclass
class Evolution:
    """Meta-parameters, and the state of Adam.

    mean: (d,). average: of the last iterates, (d,), which is the result.
    """

    parameters: int
    has_feedback: bool
    mean: Tensor
    momentum: Tensor
    square: Tensor
    average: Tensor
    generation: int = 0

    @classmethod
    def start(
        cls, parameters: int, has_feedback: bool, knots: Tensor | None = None
    ) -> "Evolution":
        """All factors are 1, or those of given knots (n, KNOTS)."""
        generator = torch.Generator().manual_seed(0)
        parts = [torch.zeros(parameters, KNOTS) if knots is None else knots]
        if has_feedback:
            hidden = torch.randn(FEATURES, WIDTH, generator=generator)
            parts += [hidden, torch.zeros(WIDTH, 1)]
        mean = torch.cat([x.flatten() for x in parts])
        zeros = torch.zeros_like(mean)
        return cls(parameters, has_feedback, mean, zeros, zeros.clone(), mean.clone())

    def rates(self, rows: Tensor) -> Rates:
        """For copies with meta-parameters of their own; rows: (copies, d)."""
        copies = len(rows)
        count = self.parameters * KNOTS
        knots = rows[:, :count].reshape(-1, KNOTS)
        if not self.has_feedback:
            return Rates(knots)
        hidden, output = rows[:, count:].split([FEATURES * WIDTH, WIDTH], 1)
        hidden = hidden.view(copies, FEATURES, WIDTH)
        output = output.view(copies, WIDTH, 1)
        if copies > 1:
            hidden = hidden.repeat_interleave(self.parameters, 0)
            output = output.repeat_interleave(self.parameters, 0)
            return Rates(knots, hidden, output)
        return Rates(knots, hidden[0], output[0])

    def result(self) -> Rates:
        return self.rates(self.average.unsqueeze(0))

    def step(
        self, family: Family, rule: HandRule, horizons: tuple[int, int], progress: float
    ) -> float:
        """One generation; returns the mean log loss of its runs.

        horizons: one is drawn, log-uniformly. progress: share of the evolution that is
        over; meta-learning rates fall to zero.
        """
        random = np.random.default_rng([self.generation, self.has_feedback])
        shortest, longest = map(math.log, horizons)
        steps = round(math.exp(random.uniform(shortest, longest)))
        noise = torch.from_numpy(random.standard_normal((PAIRS, len(self.mean))))
        noise = noise.to(self.mean)
        seeds = [FIRST_SEED + self.generation * PAIRS + i for i in range(PAIRS)]
        rows = torch.cat([self.mean + SIGMA * noise, self.mean - SIGMA * noise])
        losses = log_losses(family, seeds * 2, rule, steps, self.rates(rows))
        difference = losses[:PAIRS] - losses[PAIRS:]
        size = difference.square().mean().sqrt().clamp(min=1e-12)
        gradient = ((difference / size).unsqueeze(1) * noise).mean(0)
        self._update(gradient, META_LR * (1 - progress))
        return float(losses.mean())

    def _update(self, gradient: Tensor, lr: float) -> None:
        self.generation += 1
        self.momentum.lerp_(gradient, 1 - BETAS[0])
        self.square.lerp_(gradient.square(), 1 - BETAS[1])
        momentum = self.momentum / (1 - BETAS[0] ** self.generation)
        square = self.square / (1 - BETAS[1] ** self.generation)
        self.mean -= lr * momentum / (square.sqrt() + 1e-8)
        # the weights of a polynomial average: about the last sixth
        self.average.lerp_(self.mean, 6 / (self.generation + 5))

    def state(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Evolution":
        return cls(**state)
