"""Unrolls the optimizees of one rank. A job holds everything its result depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meta_train.problems import load_problem
from meta_train.training.estimators import (
    PES,
    TBPTT,
    Estimate,
    Estimator,
    Imitation,
    SecondOrderTBPTT,
)
from meta_train.training.rules import asks_for_step
from meta_train.training.stacked import Stack, stacked, unstacked
from meta_train.training.unroll import Optimizee
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


@dataclass(frozen=True)
class UnrollConfig:
    """What an unroll depends on beside the optimizee and the learned optimizer;
    fields as in `train.Config`."""

    problems: tuple[str, ...]
    estimator: str
    inner_weight_decay: float
    sigma: float
    loss_limit: float
    tail: float
    scaling: float
    autocast: bool
    device: torch.device
    stacked: bool


@dataclass(frozen=True)
class Job:
    """One truncation of one optimizee.

    steps: its length. age: steps of the inner training before it. horizon: of the whole
    inner training. `state` and `first_loss` are None before its first.
    """

    seed: int
    steps: int
    age: int
    horizon: int
    state: Any
    first_loss: float | None


class Result(NamedTuple):
    """What is known of an optimizee after a truncation.

    estimate: of this one alone. seconds: of a core, that it took.
    """

    estimate: Estimate
    state: Any
    first_loss: float
    seconds: float = 0.0


Limit = float | Tensor


def _tbptt(
    kind: type[TBPTT], config: UnrollConfig, limit: Limit, horizon: int
) -> Estimator:
    return kind(config.inner_weight_decay, limit, config.tail, horizon)


def _pes(
    persistent: bool, config: UnrollConfig, limit: Limit, horizon: int
) -> Estimator:
    decay = config.inner_weight_decay
    return PES(config.sigma, decay, limit, config.tail, persistent, horizon)


def _imitation(config: UnrollConfig, limit: Limit, horizon: int) -> Estimator:
    return Imitation()


ESTIMATORS: dict[str, Callable[[UnrollConfig, Limit, int], Estimator]] = {
    "tbptt": partial(_tbptt, TBPTT),
    "tbptt-2": partial(_tbptt, SecondOrderTBPTT),
    "pes": partial(_pes, True),
    "es": partial(_pes, False),
    "imitation": _imitation,
}
"""By name: (config, limit of a loss, horizon) -> estimator."""


class Worker:
    """Unrolls optimizees in this process, those that are alike as one where `stacked`
    says so.

    Raises ValueError for an unknown estimator, for settings that an estimator does not
    have, for what cannot be stacked, and for problems whose losses begin at zero or
    below.
    """

    def __init__(self, config: UnrollConfig, learned: LearnedOptimizer):
        if config.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator '{config.estimator}': expected one of {', '.join(ESTIMATORS)}"
            )
        odd = [
            key
            for key, usual in (("inner_weight_decay", 0.0), ("tail", 1.0))
            if config.estimator == "imitation" and getattr(config, key) != usual
        ]
        if odd:
            raise ValueError(
                f"{odd[0]}: expected none with imitation; got {getattr(config, odd[0])}"
            )
        if config.stacked and learned.base is not None:
            raise ValueError(
                "stacked: expected a metanet without a base rule; got the base rule "
                f"'{learned.base.name}', which reads step counts on the host. Leave out "
                "--stacked."
            )
        self.config, self.learned = config, learned
        self.problems = [load_problem(name) for name in config.problems]
        self._optimizees: dict[int, Optimizee] = {}

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        self._optimizees = {
            job.seed: self._optimizees.get(job.seed) or self.optimizee(job.seed)
            for job in jobs
        }
        groups = defaultdict(list)
        for i, job in enumerate(jobs):
            groups[self._likeness(job, i)].append(i)
        found: dict[int, Result] = {}
        for some in groups.values():
            start = process_time()
            results = self.unroll([jobs[i] for i in some])
            seconds = (process_time() - start) / len(some)
            results = [one._replace(seconds=seconds) for one in results]
            found.update(zip(some, results, strict=True))
        return [found[i] for i in range(len(jobs))]

    def optimizee(self, seed: int) -> Optimizee:
        problem, config = self.problems[self.problem_of(seed)], self.config
        return Optimizee(problem, seed, config.autocast, config.scaling, config.device)

    def unroll(self, jobs: Sequence[Job]) -> list[Result]:
        """One truncation of optimizees that are alike."""
        optimizees = [self._optimizees[job.seed] for job in jobs]
        rows = list(zip(jobs, optimizees, strict=True))
        first_losses = [
            self.first_loss(optimizee) if job.first_loss is None else job.first_loss
            for job, optimizee in rows
        ]
        limits = [self.config.loss_limit * loss for loss in first_losses]
        make = ESTIMATORS[self.config.estimator]
        job = jobs[0]
        if len(jobs) == 1:
            estimator = make(self.config, limits[0], job.horizon)
            estimate, state = estimator.estimate(
                optimizees[0], self.learned, self._state(estimator, *rows[0]), job.steps
            )
            return [Result(estimate, state, first_losses[0])]
        estimator = make(
            self.config, torch.tensor(limits, device=self.config.device), job.horizon
        )
        states = stacked([self._state(estimator, *row) for row in rows])
        found = estimator.estimate(Stack(optimizees), self.learned, states, job.steps)
        return [
            Result(*own, loss)
            for own, loss in zip(unstacked(found, len(jobs)), first_losses, strict=True)
        ]

    def first_loss(self, optimizee: Optimizee) -> float:
        inner = optimizee.start(self.learned.bind(optimizee.graph))
        with torch.no_grad():
            loss = optimizee.loss(inner.params, inner.buffers, 0)[0].item()
        if loss <= 0:
            raise ValueError(
                f"problem '{optimizee.problem.name}': expected a first loss above 0, of which "
                f"`loss_limit` is a multiple; got {loss:g}"
            )
        return loss

    def problem_of(self, seed: int) -> int:
        """The number of the problem of an optimizee."""
        return seed % len(self.problems)

    def _likeness(self, job: Job, number: int) -> Hashable:
        """Optimizees with the same are unrolled as one."""
        if not self.config.stacked:
            return number
        shapes = tuple(p.shape for p in self._optimizees[job.seed].model.parameters())
        of_one_step = self.config.estimator == "imitation"
        of_one_step = of_one_step or asks_for_step(self.learned)
        place = (job.age, job.horizon) if of_one_step else ()
        return self.problem_of(job.seed), shapes, job.steps, place

    def _state(self, estimator: Estimator, job: Job, optimizee: Optimizee) -> Any:
        return (
            estimator.start(optimizee, self.learned) if job.state is None else job.state
        )
