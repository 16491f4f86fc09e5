"""Unrolls the optimizees of one rank. A job holds everything its result depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from meta_train.estimators import PES, TBPTT, Estimate, Estimator, Imitation, SecondOrderTBPTT
from meta_train.problems import load_problem
from meta_train.unroll import Task
from ngopt.learned import LearnedOptimizer


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


@dataclass(frozen=True)
class Job:
    """One truncation of one optimizee.

    steps: its length. horizon: of the whole inner training. `state` and `first_loss` are None
    before its first.
    """

    seed: int
    steps: int
    horizon: int
    state: Any
    first_loss: float | None


class Result(NamedTuple):
    estimate: Estimate
    state: Any
    first_loss: float


def _tbptt(kind: type[TBPTT], config: UnrollConfig, loss_limit: float, horizon: int) -> Estimator:
    return kind(config.inner_weight_decay, loss_limit, config.tail, horizon)


def _pes(persistent: bool, config: UnrollConfig, loss_limit: float, horizon: int) -> Estimator:
    decay = config.inner_weight_decay
    return PES(config.sigma, decay, loss_limit, config.tail, persistent, horizon)


def _imitation(config: UnrollConfig, loss_limit: float, horizon: int) -> Estimator:
    return Imitation(horizon)


ESTIMATORS: dict[str, Callable[[UnrollConfig, float, int], Estimator]] = {
    "tbptt": partial(_tbptt, TBPTT),
    "tbptt-2": partial(_tbptt, SecondOrderTBPTT),
    "pes": partial(_pes, True),
    "es": partial(_pes, False),
    "imitation": _imitation,
}
"""By name: (config, limit of a loss, horizon) -> estimator."""


class Worker:
    """Unrolls optimizees in this process."""

    def __init__(self, config: UnrollConfig, learned: LearnedOptimizer):
        if config.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator '{config.estimator}': expected one of {', '.join(ESTIMATORS)}"
            )
        self.config, self.learned = config, learned
        self.problems = [load_problem(name) for name in config.problems]
        self._tasks: dict[int, Task] = {}

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        self._tasks = {job.seed: self._tasks.get(job.seed) or self.task(job.seed) for job in jobs}
        return [self.unroll(job, self._tasks[job.seed]) for job in jobs]

    def task(self, seed: int) -> Task:
        problem = self.problems[seed % len(self.problems)]
        return Task(problem, seed, self.config.autocast, self.config.scaling)

    def unroll(self, job: Job, task: Task) -> Result:
        first_loss = job.first_loss if job.first_loss is not None else self.first_loss(task)
        limit = self.config.loss_limit * first_loss
        estimator = ESTIMATORS[self.config.estimator](self.config, limit, job.horizon)
        state = job.state if job.state is not None else estimator.start(task, self.learned)
        estimate, state = estimator.estimate(task, self.learned, state, job.steps)
        return Result(estimate, state, first_loss)

    def first_loss(self, task: Task) -> float:
        inner = task.start(self.learned.bind(task.graph))
        with torch.no_grad():
            return task.loss(inner.params, inner.buffers, 0)[0].item()
