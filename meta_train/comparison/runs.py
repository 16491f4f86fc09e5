"""Whole inner trainings as records, one line of a file each,
so that no finished run is repeated."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from harness.files import finite, make_folder
from harness.random import seeded
from meta_train.comparison.optimizers import (
    OptimizerSpec,
    load_optimizer,
    reads_connections,
)
from meta_train.problems import Metrics, Problem, load_problem
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet, imported_metanets
from ngopt.pretrained import save_pretrained, weights_hash
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

CURVE_EXAMPLES = 1000  # for one point of a curve
# Batches at the end of a run whose mean loss is its final train loss.
TRAIN_LOSS_STEPS = 50
# Of the training curve that a record holds; a run has at most twice as many.
LOSS_POINTS = 50
STATISTICS_BATCHES = 50  # that renew the running statistics of averaged weights

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's result, and therefore the key of its record.

    problem, optimizer: names for `load_problem` and `load_optimizer`.
    lr: None where there is nothing to tune.
    weights: SHA-256 of a learned optimizer's weights.
    phase: "tuning" measures on the validation split alone, "evaluation" on test too.
    curve_every: steps between points of the curve; 0 for none. curve_split:
    what that is measured on.
    traced: as in `OptimizerSpec`; records from before it are of inferred graphs.
    """

    problem: str
    optimizer: str
    lr: float | None
    weights: str | None
    seed: int
    steps: int
    phase: str
    curve_every: int = 0
    curve_split: str = "validation"
    traced: bool = False

    def __str__(self) -> str:
        lr = "" if self.lr is None else f" lr {self.lr:g}"
        return f"{self.problem} {self.optimizer}{lr} seed {self.seed}"


def runs_of(
    learned: LearnedOptimizer,
    path: Path,
    problems: Iterable[str],
    seeds: Iterable[int],
    phase: str,
) -> list[Run]:
    """Whole trainings with one learned optimizer, which is written to `path`."""
    save_pretrained(learned, path)
    digest = weights_hash(learned)
    steps = {problem: load_problem(problem).steps for problem in problems}
    traced = reads_connections(learned)
    pairs = product(steps, seeds)
    return [
        Run(
            problem, str(path), None, digest, seed, steps[problem], phase, traced=traced
        )
        for problem, seed in pairs
    ]


class Step(NamedTuple):
    """Loss before an update; milliseconds of the whole step,
    and of optimizer and scheduler within it."""

    loss: float
    ms: float
    optimizer_ms: float


@runtime_checkable
class Averaging(Protocol):
    """An optimizer that trains with other weights than it should be judged by."""

    def train(self) -> None:
        """Puts the weights to train with into the model."""
        ...

    def eval(self) -> None:
        """Puts the weights to evaluate into the model."""
        ...


def train(run: Run, on_step: Callable[[float], None] | None = None) -> Record:
    """Trains a problem's model for `run.steps` updates on the CPU and measures it:
    a record that JSON can hold.

    Initial weights, batches and dropout follow from problem and seed alone, so they are
    the same for every optimizer, and the same as in `meta_train.training.unroll`. A run
    whose loss stops being finite is carried through and measured like any other.
    `on_step` is called with each loss.

    Raises ValueError if the problem or optimizer is unknown,
    or its weights are not those of the run, or its graph is not made as in the run.
    """
    spec = load_optimizer(run.optimizer)
    if spec.weights != run.weights:
        expected = f"expected weights {run.weights}; got {spec.weights} (SHA-256)"
        message = f"optimizer '{run.optimizer}': {expected}"
        raise ValueError(message)
    if spec.traced != run.traced:
        raise ValueError(
            f"optimizer '{run.optimizer}': expected a run with traced={spec.traced}; got "
            f"{run.traced}"
        )
    training = _Training(run, load_problem(run.problem), spec)
    steps: list[Step] = []
    curve: dict[str, list] = {"steps": [], "loss": [], "accuracy": []}
    for number in range(run.steps):
        if run.curve_every and number % run.curve_every == 0:
            _add_point(curve, number, training)
        steps.append(training.step(number))
        if on_step:
            on_step(steps[-1].loss)
    if run.curve_every:
        _add_point(curve, run.steps, training)
    return _record(training, steps, curve)


def execute(
    runs: Sequence[Run], folder: Path, processes: int, bar: tqdm
) -> list[Record]:
    """The records of all runs, in their order; those that `folder` holds are read, the
    others made.

    folder: of one file for each problem, a record a line; those of a problem of your
    own that has changed since are made again.
    processes: with more than one, runs are spread over spawned processes of one thread
    each.
    """
    make_folder(folder)
    records = read_records(folder, runs)
    digests = {name: problem_digest(name) for name in {run.problem for run in runs}}
    pending = [
        run
        for run in runs
        if run not in records
        or records[run].get("problem_digest") != digests[run.problem]
    ]
    bar.update(len(runs) - len(pending))
    if processes > 1 and pending:
        _execute_in_processes(pending, folder, processes, bar)
    else:
        for run in pending:
            bar.set_description(str(run))
            _train_and_append(run, folder)
            bar.update()
    if pending:
        records = read_records(folder, runs)
    return [records[run] for run in runs]


def read_records(folder: Path, runs: Iterable[Run]) -> dict[Run, Record]:
    """What is stored of the problems of these runs, by run."""
    paths = dict.fromkeys(record_path(folder, run) for run in runs)
    lines = [
        line
        for path in paths
        if path.exists()
        for line in path.read_text().splitlines()
    ]
    found = {
        Run(**record["run"]): record
        for record in map(_parse, lines)
        if record is not None
    }
    # records from before a field was there have its default
    return {run: {**record, "run": asdict(run)} for run, record in found.items()}


@cache
def problem_digest(name: str) -> str | None:
    """By which a problem of your own is known again: its network, its batches and first
    loss.

    None for those that have a name here.
    """
    if ":" not in name:
        return None
    problem = load_problem(name)
    model, batch = problem.init(0), problem.batch(0, 0)
    shapes = [(key, list(p.shape)) for key, p in model.named_parameters()]
    sizes = [list(x.shape) for x in tree_leaves(batch) if isinstance(x, torch.Tensor)]
    with seeded(0), torch.no_grad():
        loss = problem.loss(model, batch).item()
    told = json.dumps([shapes, sizes, problem.steps, f"{loss:.3g}"])
    return hashlib.sha256(told.encode()).hexdigest()


def record_path(folder: Path, run: Run) -> Path:
    """The file that holds a run's record, with those of its problem's other runs."""
    return folder / f"{file_name(run.problem)}.jsonl"


def file_name(name: str) -> str:
    """A name with what does not belong into a file name replaced, cut to its last 40
    characters."""
    return re.sub(r"[^\w.-]+", "_", name)[-40:]


class _Training:
    """A model in training, with what trains it."""

    def __init__(self, run: Run, problem: Problem, spec: OptimizerSpec):
        self.run, self.problem = run, problem
        self.model = problem.init(run.seed)
        self.optimizer, self.scheduler = spec.build(self.model, run.lr, run.steps)

    def step(self, number: int) -> Step:
        start = perf_counter()
        batch = self.problem.batch(self.run.seed, number)
        self.optimizer.zero_grad()
        # dropout, as in meta_train.training.unroll
        with seeded(self.run.seed, 2, number):
            loss = self.problem.loss(self.model, batch)
        loss.backward()
        middle = perf_counter()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        end = perf_counter()
        return Step(loss.item(), 1e3 * (end - start), 1e3 * (end - middle))

    def measure(self, split: str, limit: int | None = None) -> Metrics:
        with self._evaluation_mode():
            return self.problem.evaluate(self.model, split, limit)

    @contextmanager
    def _evaluation_mode(self) -> Iterator[None]:
        """Puts averaged weights into the model where the optimizer has them
        (schedule-free)."""
        optimizer = self.optimizer
        if isinstance(optimizer, Averaging):
            optimizer.eval()
            self._renew_statistics()
        self.model.eval()
        yield
        self.model.train()
        if isinstance(optimizer, Averaging):
            optimizer.train()

    @torch.no_grad()
    def _renew_statistics(self) -> None:
        """Lets BatchNorm see the averaged weights, as schedule-free's authors ask for."""
        if not any(isinstance(module, _BatchNorm) for module in self.model.modules()):
            return
        with seeded(self.run.seed, 5):
            for number in range(STATISTICS_BATCHES):
                self.problem.loss(self.model, self.problem.batch(self.run.seed, number))


def _add_point(curve: dict[str, list], step: int, training: _Training) -> None:
    metrics = training.measure(training.run.curve_split, CURVE_EXAMPLES)
    curve["steps"].append(step)
    curve["loss"].append(finite(metrics.loss))
    curve["accuracy"].append(metrics.accuracy)


def _record(training: _Training, steps: list[Step], curve: dict[str, list]) -> Record:
    losses = [step.loss for step in steps]
    last = losses[-TRAIN_LOSS_STEPS:]
    every = max(1, len(losses) // LOSS_POINTS)
    splits = ["validation"]
    if training.run.phase == "evaluation":
        splits.append("test")
    metrics = {split: training.measure(split) for split in splits}
    return {
        "run": asdict(training.run),
        "problem_digest": problem_digest(training.run.problem),
        **{
            split: m._asdict() | {"loss": finite(m.loss)}
            for split, m in metrics.items()
        },
        "train_loss": finite(fmean(last)),
        "diverged": not all(map(math.isfinite, losses)),
        "ms_per_step": median(step.ms for step in steps),
        "optimizer_ms_per_step": median(step.optimizer_ms for step in steps),
        "seconds": sum(step.ms for step in steps) / 1e3,
        "losses": [finite(fmean(part)) for part in _stretches(losses, every)],
        "losses_every": every,
        "curve": curve,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),  # problems on text depend on it
    }


def _stretches(values: list[float], length: int) -> Iterator[list[float]]:
    """Consecutive parts of a list; the last may be shorter."""
    return (values[start : start + length] for start in range(0, len(values), length))


def _parse(line: str) -> Record | None:
    """None for a line of which only a part was written."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _train_and_append(run: Run, folder: Path) -> None:
    """Several processes may add to a file at once: a line is written by a single call."""
    line = json.dumps(train(run), allow_nan=False)
    path = record_path(folder, run)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, f"{_break(handle)}{line}\n".encode())
    finally:
        os.close(handle)


def _break(handle: int) -> str:
    """What ends a last line of which only a part was written."""
    size = os.fstat(handle).st_size
    return "\n" if size and os.pread(handle, 1, size - 1) != b"\n" else ""


def _begin_process(metanets: Sequence[str]) -> None:
    """metanets: of the user's own, which weights may name."""
    torch.set_num_threads(1)
    for name in metanets:
        find_metanet(name, METANETS, may_import=True)


def _execute_in_processes(
    pending: Sequence[Run], folder: Path, processes: int, bar: tqdm
) -> None:
    for name in dict.fromkeys(run.problem for run in pending):
        # missing data is fetched once, not by every process
        load_problem(name).batch(0, 0)
    pool = ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(imported_metanets(),),
    )
    bar.set_description(", ".join(map(str, pending[:processes])))
    try:
        futures = {pool.submit(_train_and_append, run, folder): run for run in pending}
        for future in as_completed(futures):
            future.result()
            bar.update()
            # The pool also calls the next in line running, hence the cut.
            running = [str(run) for f, run in futures.items() if f.running()]
            bar.set_description(", ".join(running[:processes]))
    finally:
        pool.shutdown(cancel_futures=True)
