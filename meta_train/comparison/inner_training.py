"""One training run of a problem with an optimizer, as a record: whole, or its times."""

import hashlib
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from harness.files import without_nan
from harness.random import seeded
from meta_train.comparison.optimizers import ComparedOptimizer, load_optimizer
from meta_train.problems import Metrics, Problem, load_problem
from ngopt.race.equal_time import mean_ms, step_in_turns, timed_steps, turns_of
from ngopt.race.training import TrainingLoop

DEFAULT = "default"  # whose seconds the others get
CURVE_EXAMPLES = 1000  # for one point of a curve
TRAIN_LOSS_STEPS = 50  # last batches whose mean loss is the final train loss
LOSS_POINTS = 50  # of the training curve in a record; at most twice as many
STATISTICS_BATCHES = 50  # that recompute running statistics of averaged weights

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """All that a run's result depends on, which is the key of its record.

    problem, optimizer: names for `load_problem` and `load_optimizer`.
    lr: None where there is nothing to tune.
    weights: SHA-256 of a learned optimizer's weights, in a timing of the default's.
    phase: "tuning" measures on the validation split alone, "evaluation" on test too,
        "timing" measures time beside the default alone.
    curve_every: steps between points of the curve; 0 for none.
    curve_split: the split that the curve is measured on.
    traced: as in `ComparedOptimizer`; records without it have inferred graphs.
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


def train(run: Run, on_step: Callable[[float], None] | None = None) -> Record:
    """Trains a problem's model for `run.steps` updates on the CPU and measures it.

    Returns a record that JSON can hold. Initial weights, batches and dropout depend on
    problem and seed alone. They are the same for every optimizer and in
    `meta_train.training.unroll`. A run continues when its loss stops being finite.

    on_step: called with each loss.

    Raises ValueError if the problem or optimizer is unknown, or if its weights or
    `traced` are not those of the run.
    """
    spec = load_optimizer(run.optimizer)
    _check_weights(run, spec)
    if spec.traced != run.traced:
        raise ValueError(
            f"optimizer '{run.optimizer}': expected a run with traced={spec.traced}; "
            f"got {run.traced}"
        )
    loop = _MeasuredLoop(run, load_problem(run.problem), spec)
    for number in range(run.steps):
        if run.curve_every and number % run.curve_every == 0:
            loop.add_point(number)
        loop.step()
        if on_step:
            on_step(loop.losses[-1])
    if run.curve_every:
        loop.add_point(run.steps)
    return loop.record()


def time_in_turns(run: Run) -> Record:
    """Times the first steps of a run in turns with those of the default.

    Returns milliseconds of a whole step, mean over the run, of both.
    """
    default = load_optimizer(DEFAULT)
    _check_weights(run, default)
    problem = load_problem(run.problem)
    loops = [
        _MeasuredLoop(run, problem, load_optimizer(run.optimizer)),
        _MeasuredLoop(replace(run, lr=None), problem, default),
    ]
    step_in_turns(loops, turns_of(timed_steps(run.steps)))
    ms_per_step, default_ms_per_step = (mean_ms(loop.ms, run.steps) for loop in loops)
    return {
        "run": asdict(run),
        "problem_digest": problem_digest(run.problem),
        "ms_per_step": ms_per_step,
        "default_ms_per_step": default_ms_per_step,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _check_weights(run: Run, spec: ComparedOptimizer) -> None:
    if spec.weights != run.weights:
        raise ValueError(
            f"optimizer '{spec.name}': expected weights {run.weights}; "
            f"got {spec.weights} (SHA-256)"
        )


@cache
def problem_digest(name: str) -> str | None:
    """A hash of your own problem's network, batch sizes and first loss.

    None for the problems of this repository.
    """
    if ":" not in name:
        return None
    problem = load_problem(name)
    model, batch = problem.init(0), problem.batch(0, 0)
    shapes = [(key, list(p.shape)) for key, p in model.named_parameters()]
    sizes = [list(x.shape) for x in tree_leaves(batch) if torch.is_tensor(x)]
    with seeded(0), torch.no_grad():
        loss = problem.loss(model, batch).item()
    text = json.dumps([shapes, sizes, problem.steps, f"{loss:.3g}"])
    return hashlib.sha256(text.encode()).hexdigest()


class _MeasuredLoop(TrainingLoop):
    """A problem's network in training, with its curve."""

    def __init__(self, run: Run, problem: Problem, spec: ComparedOptimizer):
        model = problem.init(run.seed)
        optimizer, scheduler = spec.build(model, run.lr, run.steps)
        super().__init__(model, optimizer, scheduler, self.loss_of_batch)
        self.run, self.problem = run, problem
        self.curve: dict[str, list] = {"steps": [], "loss": [], "accuracy": []}

    def loss_of_batch(self, model: nn.Module, number: int) -> Tensor:
        """The loss of the batch of a step."""
        batch = self.problem.batch(self.run.seed, number)
        # dropout, as in meta_train.training.unroll
        with seeded(self.run.seed, 2, number):
            return self.problem.loss(model, batch)

    def add_point(self, step: int) -> None:
        metrics = self._measured(self.run.curve_split, CURVE_EXAMPLES)
        self.curve["steps"].append(step)
        self.curve["loss"].append(metrics.loss)
        self.curve["accuracy"].append(metrics.accuracy)

    def record(self) -> Record:
        run, losses = self.run, self.losses
        every = max(1, len(losses) // LOSS_POINTS)
        starts = range(0, len(losses), every)
        mean_losses = [fmean(losses[start : start + every]) for start in starts]
        splits = ["validation", "test"] if run.phase == "evaluation" else ["validation"]
        record = {
            "run": asdict(run),
            "problem_digest": problem_digest(run.problem),
            **{split: self._measured(split)._asdict() for split in splits},
            "train_loss": fmean(losses[-TRAIN_LOSS_STEPS:]),
            "diverged": not all(map(math.isfinite, losses)),
            "ms_per_step": median(self.ms),
            "optimizer_ms_per_step": median(self.optimizer_ms),
            "seconds": sum(self.ms) / 1e3,
            "losses": mean_losses,
            "losses_every": every,
            "curve": self.curve,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),  # problems on text depend on it
        }
        return without_nan(record)

    def _measured(self, split: str, limit: int | None = None) -> Metrics:
        """Metrics with averaged weights if the optimizer has them.

        Its `eval()` then puts them into the model, and `train()` those for training.
        """
        optimizer: Any = self.optimizer
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        groups = optimizer.param_groups  # with total_steps there are no averages
        is_averaged = not all(group.get("train_mode", True) for group in groups)
        if is_averaged:
            self._update_batch_norm()
        self.model.eval()
        metrics = self.problem.evaluate(self.model, split, limit)
        self.model.train()
        if is_averaged:
            optimizer.train()
        return metrics

    @torch.no_grad()
    def _update_batch_norm(self) -> None:
        """Recomputes BatchNorm's statistics for averaged weights, as schedule-free's
        authors recommend."""
        if not any(isinstance(module, _BatchNorm) for module in self.model.modules()):
            return
        with seeded(self.run.seed, 5):
            for number in range(STATISTICS_BATCHES):
                self.problem.loss(self.model, self.problem.batch(self.run.seed, number))
