"""The inner trainings of one outer step, in this process or in several.

A job holds everything its result depends on, and all random numbers follow from its seeds, so the
number of processes changes no number.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from meta_train.estimators import PES, TBPTT, Estimate, Estimator, trained_metanet
from meta_train.problems import load_problem
from meta_train.unroll import Task
from ngopt.learned import LearnedOptimizer

ESTIMATORS = ("tbptt", "pes")


@dataclass(frozen=True)
class UnrollConfig:
    """What an unroll depends on beside the optimizee and the learned optimizer; fields as in `train.Config`."""

    problems: tuple[str, ...]
    estimator: str
    horizon: int
    truncation: int
    inner_weight_decay: float
    sigma: float
    loss_limit: float
    tail: float
    autocast: bool


@dataclass(frozen=True)
class Job:
    """One truncation of one optimizee. `state` and `first_loss` are None before its first."""

    seed: int
    state: Any
    first_loss: float | None


@dataclass(frozen=True)
class Result:
    estimate: Estimate
    state: Any
    first_loss: float


class Worker:
    """Unrolls optimizees in this process."""

    def __init__(self, config: UnrollConfig, learned: LearnedOptimizer):
        if config.estimator not in ESTIMATORS:
            raise ValueError(f"estimator '{config.estimator}': expected one of {', '.join(ESTIMATORS)}")
        self.config, self.learned = config, learned
        self.problems = [load_problem(name) for name in config.problems]
        self._tasks: dict[int, Task] = {}

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        self._tasks = {job.seed: self._tasks.get(job.seed) or self.task(job.seed) for job in jobs}
        return [self.unroll(job, self._tasks[job.seed]) for job in jobs]

    def task(self, seed: int) -> Task:
        return Task(self.problems[seed % len(self.problems)], seed, self.config.autocast)

    def unroll(self, job: Job, task: Task) -> Result:
        first_loss = job.first_loss if job.first_loss is not None else self.first_loss(task)
        estimator = self.estimator(self.config.loss_limit * first_loss)
        state = job.state if job.state is not None else estimator.start(task, self.learned)
        estimate, state = estimator.estimate(task, self.learned, state, self.config.truncation)
        return Result(estimate, state, first_loss)

    def estimator(self, loss_limit: float) -> Estimator:
        config = self.config
        if config.estimator == "tbptt":
            return TBPTT(config.inner_weight_decay, loss_limit, config.tail, config.horizon)
        return PES(
            config.sigma,
            config.inner_weight_decay,
            loss_limit,
            config.tail,
            total_steps=config.horizon,
        )

    def first_loss(self, task: Task) -> float:
        inner = task.start(self.learned.bind(task.graph))
        with torch.no_grad():
            return task.loss(inner.params, inner.buffers, 0)[0].item()


class WorkerPool:
    """Unrolls optimizees in several processes of one thread each."""

    def __init__(self, config: UnrollConfig, learned: LearnedOptimizer, processes: int):
        self.metanet = trained_metanet(learned)
        self._pool = ProcessPoolExecutor(
            processes, get_context("spawn"), initializer=_start, initargs=(config, _pack(learned))
        )

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        theta = parameters_to_vector(self.metanet.parameters()).detach()
        return [_unpack(r) for r in self._pool.map(_run, [_pack((theta, job)) for job in jobs])]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


_worker: Worker  # of a process of the pool


def _start(config: UnrollConfig, learned: bytes) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = Worker(config, _unpack(learned))


def _run(packed: bytes) -> bytes:
    theta, job = _unpack(packed)
    vector_to_parameters(theta, trained_metanet(_worker.learned).parameters())
    return _pack(_worker.run([job])[0])


def _pack(value: Any) -> bytes:
    """Bytes, for torch would otherwise pass every tensor through a file of its own."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpack(packed: bytes) -> Any:
    return torch.load(io.BytesIO(packed), weights_only=False)
