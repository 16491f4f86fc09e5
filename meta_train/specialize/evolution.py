"""Rates by parameter and time, by antithetic evolution over whole training runs."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meta_train.specialize.family import Family, HandRule, log_losses
from ngopt.specialized.rates import FEATURES, Rates

KNOTS = 5
WIDTH = 8  # of the MLP
PAIRS = 12  # of antithetic runs, each on a member of its own
SIGMA = 0.15  # of perturbations
META_LR = 0.06
BETAS = 0.9, 0.99  # of Adam, which makes the meta-updates
FIRST_SEED = 1_000_000  # of members for evolution


@dataclass
class Evolution:
    """Meta-parameters (d,): knots of the middle horizon, half the differences of those
    of the longest and the shortest, and the weights of the MLP if it has feedback.

    momentum, square: of Adam. average: of the last iterates, the result.
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
        """All factors are 1, or those of given knots (n, 2, KNOTS)."""
        if knots is None:
            knots = torch.zeros(parameters, 2, KNOTS)
        shortest, longest = knots.unbind(1)
        parts = [(shortest + longest) / 2, (longest - shortest) / 2]
        if has_feedback:
            generator = torch.Generator().manual_seed(0)
            parts.append(torch.randn(FEATURES, WIDTH, generator=generator))
            parts.append(torch.zeros(WIDTH, 1))
        mean = torch.cat([x.flatten() for x in parts])
        zeros = torch.zeros_like(mean)
        return cls(parameters, has_feedback, mean, zeros, zeros.clone(), mean.clone())

    def rates(self, rows: Tensor, horizons: tuple[int, int]) -> Rates:
        """Of copies, whose meta-parameters are the rows (copies, d)."""
        n = self.parameters
        count = n * KNOTS
        middle, slope, mlp = rows.tensor_split([count, 2 * count], 1)
        knots = torch.stack([middle - slope, middle + slope], 1)
        knots = knots.unflatten(2, (n, KNOTS)).transpose(1, 2).flatten(0, 1)
        if not self.has_feedback:
            return Rates(knots, horizons)
        mlp = mlp.repeat_interleave(n, 0)
        hidden, output = mlp.split([FEATURES * WIDTH, WIDTH], 1)
        hidden = hidden.unflatten(1, (FEATURES, WIDTH))
        return Rates(knots, horizons, None, hidden, output.unsqueeze(2))

    def result(self, horizons: tuple[int, int], copies: int = 1) -> Rates:
        return self.rates(self.average.repeat(copies, 1), horizons)

    def step(
        self, family: Family, rule: HandRule, horizons: tuple[int, int], progress: float
    ) -> float:
        """One generation; returns the mean log loss of its runs.

        horizons: one is drawn, log-uniformly. progress: share of the evolution that is
        over; the meta-learning rate falls to zero.
        """
        random = np.random.default_rng([self.generation, self.has_feedback])
        shortest, longest = map(math.log, horizons)
        steps = round(math.exp(random.uniform(shortest, longest)))
        noise = torch.from_numpy(random.standard_normal((PAIRS, len(self.mean))))
        noise = noise.to(self.mean)
        first = FIRST_SEED + self.generation * PAIRS
        seeds = [*range(first, first + PAIRS)] * 2
        rows = self.mean + SIGMA * torch.cat([noise, -noise])
        rates = self.rates(rows, horizons)
        losses = log_losses(family, seeds, rule, steps, rates)
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
        # a polynomial average, over about the last sixth
        self.average.lerp_(self.mean, 6 / (self.generation + 5))
