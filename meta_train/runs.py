"""Whole inner trainings as records: one run, one JSON file, so that a finished run is never repeated."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from meta_train.optimizers import load_optimizer
from meta_train.problems import Metrics, Problem, load_problem
from meta_train.random import seeded

CURVE_EXAMPLES = 1000  # validation examples for one point of an accuracy curve
TRAIN_LOSS_STEPS = 50  # batches at the end of a run whose mean loss is its final train loss

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's result, and therefore the key of its record.

    problem, optimizer: names for `load_problem` and `load_optimizer`.
    lr: None for a learned optimizer.
    weights: SHA-256 of a learned optimizer's weights.
    phase: "tuning" measures on the validation split alone, "evaluation" on test too.
    curve_every: steps between points of the accuracy curve; 0 for none.
    """

    problem: str
    optimizer: str
    lr: float | None
    weights: str | None
    seed: int
    steps: int
    phase: str
    curve_every: int = 0

    def __str__(self) -> str:
        lr = "" if self.lr is None else f" lr {self.lr:g}"
        return f"{self.problem} {self.optimizer}{lr} seed {self.seed}"


class Step(NamedTuple):
    """Loss before an update; milliseconds of the whole step, and of optimizer and scheduler within it."""

    loss: float
    ms: float
    optimizer_ms: float


def train(run: Run, on_step: Callable[[float], None] | None = None) -> Record:
    """Trains a problem's model for `run.steps` updates on the CPU and measures it: a record that JSON can hold.

    Initial weights, batches and dropout follow from problem and seed alone, so they are the same for
    every optimizer, and the same as in `meta_train.unroll`. A run whose loss stops being finite is
    carried through and measured like any other. `on_step` is called with each loss.

    Raises ValueError if the problem or optimizer is unknown, or its weights are not those of the run.
    """
    problem, spec = load_problem(run.problem), load_optimizer(run.optimizer)
    if spec.weights != run.weights:
        raise ValueError(f"optimizer '{run.optimizer}': expected weights {run.weights}; got {spec.weights} (SHA-256)")
    model = problem.init(run.seed)
    optimizer, scheduler = spec.build(model, run.lr, run.steps)
    steps: list[Step] = []
    curve: dict[str, list] = {"steps": [], "accuracy": []}
    for number in range(run.steps):
        if run.curve_every and number % run.curve_every == 0:
            _add_point(curve, number, problem, model)
        steps.append(_train_step(problem, model, optimizer, scheduler, run.seed, number))
        if on_step:
            on_step(steps[-1].loss)
    if run.curve_every:
        _add_point(curve, run.steps, problem, model)
    return _record(run, steps, curve, problem, model)


def execute(runs: Sequence[Run], folder: Path, processes: int, bar: tqdm) -> list[Record]:
    """The records of all runs, in their order; a run with a file in `folder` is read, the others are made.

    processes: with more than one, runs are spread over spawned processes of one thread each.
    """
    pending = [run for run in runs if not record_path(folder, run).exists()]
    folder.mkdir(parents=True, exist_ok=True)
    bar.update(len(runs) - len(pending))
    if processes > 1 and pending:
        _execute_in_processes(pending, folder, processes, bar)
    else:
        for run in pending:
            bar.set_description(str(run))
            _train_and_write(run, folder)
            bar.update()
    return [json.loads(record_path(folder, run).read_text()) for run in runs]


def record_path(folder: Path, run: Run) -> Path:
    """The file of a run's record; its name holds a hash of the whole description."""
    key = hashlib.sha256(json.dumps(asdict(run), sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{file_name(run.problem)}-{file_name(run.optimizer)}-{run.phase}-{run.seed}-{key}.json"


def file_name(name: str) -> str:
    """A name with what does not belong into a file name replaced, cut to its last 40 characters."""
    return re.sub(r"[^\w.-]+", "_", name)[-40:]


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, all of it or nothing."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file, allow_nan=False)
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def finite(value: float) -> float | None:
    """None in place of inf and nan, which JSON does not have."""
    return value if math.isfinite(value) else None


def _train_step(
    problem: Problem, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, seed: int, step: int
) -> Step:
    start = perf_counter()
    batch = problem.batch(seed, step)
    optimizer.zero_grad()
    with seeded(seed, 2, step):  # dropout, as in meta_train.unroll
        loss = problem.loss(model, batch)
    loss.backward()
    middle = perf_counter()
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    end = perf_counter()
    return Step(loss.item(), 1e3 * (end - start), 1e3 * (end - middle))


def _add_point(curve: dict[str, list], step: int, problem: Problem, model: nn.Module) -> None:
    curve["steps"].append(step)
    curve["accuracy"].append(_measure(problem, model, "validation", CURVE_EXAMPLES).accuracy)


def _measure(problem: Problem, model: nn.Module, split: str, limit: int | None = None) -> Metrics:
    model.eval()
    metrics = problem.evaluate(model, split, limit)
    model.train()
    return metrics


def _record(run: Run, steps: list[Step], curve: dict[str, list], problem: Problem, model: nn.Module) -> Record:
    losses = [step.loss for step in steps]
    splits = ("validation", "test") if run.phase == "evaluation" else ("validation",)
    metrics = {split: _measure(problem, model, split) for split in splits}
    last = losses[-TRAIN_LOSS_STEPS:]
    return {
        "run": asdict(run),
        **{split: {"loss": finite(m.loss), "accuracy": m.accuracy} for split, m in metrics.items()},
        "train_loss": finite(sum(last) / len(last)),
        "diverged": not all(map(math.isfinite, losses)),
        "ms_per_step": median(step.ms for step in steps),
        "optimizer_ms_per_step": median(step.optimizer_ms for step in steps),
        "seconds": sum(step.ms for step in steps) / 1e3,
        "losses": [finite(loss) for loss in losses],
        "curve": curve,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _train_and_write(run: Run, folder: Path) -> None:
    write_json(record_path(folder, run), train(run))


def _execute_in_processes(pending: Sequence[Run], folder: Path, processes: int, bar: tqdm) -> None:
    for name in dict.fromkeys(run.problem for run in pending):
        load_problem(name).batch(0, 0)  # missing data is fetched once, not by every process
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    bar.set_description(", ".join(map(str, pending[:processes])))
    try:
        futures = {pool.submit(_train_and_write, run, folder): run for run in pending}
        for future in as_completed(futures):
            future.result()
            bar.update()
            # The pool also calls the next in line running, hence the cut.
            running = [str(run) for f, run in futures.items() if f.running()][:processes]
            bar.set_description(", ".join(running))
    finally:
        pool.shutdown(cancel_futures=True)
