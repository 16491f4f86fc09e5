"""Evolution strategies, persistent or not."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from meta_train.training.estimators.estimate import (
    Estimate,
    losses_after,
    tail_length,
    times,
    weighted,
)
from meta_train.training.rules import as_weights
from meta_train.training.unroll import Inner, Optimizee, Optimizees
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


class PESState(NamedTuple):
    """positive, negative: the antithetic pair of inner runs.

    perturbation: the sum of all perturbations so far.
    """

    positive: Inner
    negative: Inner
    perturbation: Tensor


@dataclass(frozen=True, eq=False)
class PES:
    """Persistent evolution strategies with one antithetic pair (Vicol et al. 2021, Eq.
    10).

    Every truncation draws a perturbation of the meta-parameters, epsilon ~ N(0,
    sigma^2). The losses of the pair are weighted by the sum of all perturbations since
    the inner run began, so the estimate is unbiased over the whole of it. Without
    that sum (`persistent=False`) it is truncated ES, which is biased. With a truncation
    as long as the inner run it is antithetic ES. Meta-losses are those of `TBPTT`.
    """

    sigma: float = 0.01
    loss_limit: float | Tensor = float("inf")
    tail: float = 1.0
    persistent: bool = True
    total_steps: int | None = None

    def start(self, optimizee: Optimizee, learned: LearnedOptimizer) -> PESState:
        inner = optimizee.start(learned.bind(optimizee.graph, self.total_steps))
        theta = parameters_to_vector(learned.metanet.parameters())
        return PESState(inner, inner, torch.zeros_like(theta.detach()))

    def estimate(
        self,
        optimizee: Optimizees,
        learned: LearnedOptimizer,
        state: PESState,
        steps: int,
    ) -> tuple[Estimate, PESState]:
        metanet = learned.metanet
        bound = learned.bind(optimizee.graph, self.total_steps)
        theta = parameters_to_vector(metanet.parameters()).detach()
        drawn = optimizee.normal(state.positive.step, len(theta), theta.dtype)
        noise = self.sigma * drawn.to(theta.device)
        total = state.perturbation + noise if self.persistent else noise
        rules = []
        for side in (noise, -noise):
            weights = as_weights(theta + side, metanet)
            rules.append(weighted(bound, optimizee, learned, weights))
        positive, above = losses_after(optimizee, state.positive, rules[0], steps)
        negative, below = losses_after(optimizee, state.negative, rules[1], steps)
        above, below = (x.clamp(max=self.loss_limit) for x in (above, below))
        counted = tail_length(steps, self.tail)
        plus = above[-counted:].mean(0)
        minus = below[-counted:].mean(0)
        slope = (plus - minus) / (2 * self.sigma**2)
        inner_loss = 0.5 * (above + below).mean(0)
        estimate = Estimate(times(slope, total), 0.5 * (plus + minus), inner_loss)
        return estimate, PESState(positive, negative, total)
