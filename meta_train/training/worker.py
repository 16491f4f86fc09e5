"""Unrolls the optimizees of one rank, and restarts them."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.random import derive_seed, seeded
from meta_train.problems import load_problem
from meta_train.training.config import Config
from meta_train.training.estimators import (
    PES,
    TBPTT,
    Estimate,
    Estimator,
    SecondOrderTBPTT,
)
from meta_train.training.rules import depends_on_step
from meta_train.training.unroll import Optimizee, Stack, stacked, unstacked
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


class Result(NamedTuple):
    """One optimizee's truncation as all ranks have it, without its state.

    is_usable: whether all numbers are finite. meta_gradient: clipped, on the CPU. norm:
    before clipping. Losses as in `Estimate`.
    """

    is_usable: bool
    meta_loss: float
    inner_loss: float
    first_loss: float
    norm: float
    meta_gradient: Tensor


def result_of(estimate: Estimate, first_loss: float, clip_norm: float) -> Result:
    """clip_norm: largest norm of a meta-gradient."""
    gradient = estimate.meta_gradient
    norm = gradient.norm().item()
    shrink = min(1.0, clip_norm / max(norm, 1e-12))
    return Result(
        is_usable=all(bool(values.isfinite().all()) for values in estimate),
        meta_loss=estimate.meta_loss.item(),
        inner_loss=estimate.inner_loss.item(),
        first_loss=first_loss,
        norm=norm,
        meta_gradient=(gradient * shrink).cpu(),
    )


@dataclass
class OptimizeeProgress:
    """The inner run of one optimizee.

    It is restarted when it has reached its horizon or diverged.

    life: how often it was restarted. horizon: its inner steps until the next restart.
    age: inner steps since the last one. state: None before the first step, and in ranks
    that do not own the optimizee.
    """

    config: Config
    number: int
    horizon: int
    life: int = 0
    age: int = 0
    state: Any = None
    first_loss: float | None = None

    @property
    def steps(self) -> int:
        """Inner steps of the next truncation."""
        rest = self.horizon - self.age
        if self.config.estimator == "es":
            return rest
        return min(self.config.truncation, rest)

    @property
    def seed(self) -> int:
        """Of its initial weights and batches, another one after a restart."""
        return derive_seed(self.config.seed, 10, self.number, self.life)

    def advance(self, first_loss: float, inner_loss: float, outer_step: int) -> None:
        """Adds a truncation, and restarts at the horizon or after divergence.

        inner_loss: mean of the truncation; inf if it was not finite.
        """
        self.age += self.steps
        self.first_loss = first_loss
        limit = 0.5 * (1 + self.config.loss_limit) * first_loss
        has_diverged = not inner_loss <= limit  # also if the first loss is nan
        if has_diverged or self.age >= self.horizon:
            self.life += 1
            self.age = 0
            self.state = self.first_loss = None
            self.horizon = self.next_horizon(outer_step)

    def next_horizon(self, outer_step: int) -> int:
        config = self.config
        if config.shortest is None:
            return config.horizon
        progress = min(1.0, 2 * outer_step / config.outer_steps)
        with seeded(config.seed, 13, self.number, self.life):
            exponent = progress * torch.rand((), dtype=torch.float64).item()
        return round(config.shortest * (config.horizon / config.shortest) ** exponent)


def first_optimizees(config: Config) -> list[OptimizeeProgress]:
    """All optimizees before their first step.

    Their first horizons differ, so that their ages differ later. Where horizons grow,
    they begin with the shortest.
    """
    optimizees = []
    for i in range(config.optimizees):
        horizon = max(1, config.horizon * (i + 1) // config.optimizees)
        optimizees.append(OptimizeeProgress(config, i, config.shortest or horizon))
    return optimizees


def make_estimator(config: Config, limit: float | Tensor, horizon: int) -> Estimator:
    """The estimator that the config names.

    limit: of a loss, one for all or one per optimizee.
    """
    tail = config.tail
    if config.estimator == "tbptt":
        return TBPTT(limit, tail, horizon)
    if config.estimator == "tbptt-2":
        return SecondOrderTBPTT(limit, tail, horizon)
    is_pes = config.estimator == "pes"
    return PES(config.sigma, limit, tail, persistent=is_pes, total_steps=horizon)


class Worker:
    """Unrolls optimizees in this process; with `stacked`, equal shapes as one.

    Raises ValueError for optimizees that cannot be stacked, and for problems with a
    first loss of 0 or less.
    """

    def __init__(self, config: Config, learned: LearnedOptimizer, device: torch.device):
        self.config = config
        self.learned = learned
        self.device = device
        self.problems = list(map(load_problem, config.problems))
        self._optimizees: dict[int, Optimizee] = {}

    def run(self, jobs: Sequence[OptimizeeProgress]) -> list[tuple[Result, Any]]:
        """The next truncation of optimizees, in their order, and their states."""
        before = self._optimizees
        self._optimizees = {}
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for number, job in enumerate(jobs):
            known = before.get(job.seed)
            self._optimizees[job.seed] = known or self.optimizee(job.seed)
            key = self._stack_key(job) if self.config.stacked else number
            groups[key].append(number)
        results: dict[int, tuple[Result, Any]] = {}
        for numbers in groups.values():
            of_group = self.unroll([jobs[number] for number in numbers])
            results |= dict(zip(numbers, of_group, strict=True))
        return [results[number] for number in range(len(jobs))]

    def optimizee(self, seed: int) -> Optimizee:
        problem = self.problems[self.problem_of(seed)]
        return Optimizee(problem, seed, self.config.autocast, self.device)

    def unroll(self, jobs: Sequence[OptimizeeProgress]) -> list[tuple[Result, Any]]:
        """One truncation of optimizees that can be stacked."""
        config = self.config
        learned = self.learned
        steps, horizon = jobs[0].steps, jobs[0].horizon
        optimizees = [self._optimizees[job.seed] for job in jobs]
        first_losses = []
        for job, optimizee in zip(jobs, optimizees, strict=True):
            known = job.first_loss
            first_losses.append(self.first_loss(optimizee) if known is None else known)
        limits = [config.loss_limit * loss for loss in first_losses]
        is_stack = len(jobs) > 1
        limit = torch.tensor(limits, device=self.device) if is_stack else limits[0]
        estimator = make_estimator(config, limit, horizon)
        states = []
        for job, optimizee in zip(jobs, optimizees, strict=True):
            is_new = job.state is None
            states.append(estimator.start(optimizee, learned) if is_new else job.state)
        if is_stack:
            stack = Stack(optimizees)
            of_stack = estimator.estimate(stack, learned, stacked(states), steps)
            estimates = unstacked(of_stack, len(jobs))
        else:
            estimates = [estimator.estimate(optimizees[0], learned, states[0], steps)]
        results = []
        for (estimate, state), loss in zip(estimates, first_losses, strict=True):
            results.append((result_of(estimate, loss, config.clip_norm), state))
        return results

    def first_loss(self, optimizee: Optimizee) -> float:
        inner = optimizee.start(self.learned.bind(optimizee.graph))
        with torch.no_grad():
            loss = optimizee.loss(inner.params, inner.buffers, 0)[0].item()
        if loss <= 0:
            raise ValueError(
                f"problem '{optimizee.problem.name}': expected a first loss above 0, "
                f"since `loss_limit` is a multiple of it; got {loss:g}"
            )
        return loss

    def problem_of(self, seed: int) -> int:
        """The number of the problem of an optimizee."""
        return seed % len(self.problems)

    def _stack_key(self, job: OptimizeeProgress) -> Hashable:
        """Those with equal keys are unrolled as one."""
        shapes = tuple(p.shape for p in self._optimizees[job.seed].model.parameters())
        age = (job.age, job.horizon) if depends_on_step(self.learned) else ()
        return self.problem_of(job.seed), shapes, job.steps, age
