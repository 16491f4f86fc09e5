"""LightBench at the first attempt: `python -m meta_train.comparison.first_attempt`.

LightBench (github.com/HomebrewML/LightBench) has some fifty small problems that are
hard for optimizers, each at several difficulties, and searches for hyperparameters
until a problem is solved. Here each optimizer has one attempt. A problem is solved when
its own condition holds after a step. As there, a difficulty is tried only after all
easier ones are solved. Writes `first_attempt.json`, from which it resumes, and
`first_attempt.md`.

Left out: what needs data sets, and `memory_constrained`, whose conditions are about the
memory of a GPU.
"""

import copy
import inspect
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from harness import cli
from harness.files import make_folder, read_json, write_json
from harness.random import seeded
from harness.settings import check_counts
from harness.tables import markdown_table, text_table
from meta_train.comparison.inner_training import DEFAULT
from meta_train.comparison.optimizers import load_optimizer

PROBLEMS = """
absolute_varying_scale adversarial_gradient batch_size_scaling beale
class_imbalance_rare constrained_optimization_log constrained_optimization_relu
discontinuous_gradient dynamic_landscape generalization_summod
generalization_weighted_summod gradient_delay gradient_noise_scale_heavy_tailed
gradient_noise_scale_instantaneous_brown gradient_noise_scale_temporal_brown
gradient_noise_scale_white ill_conditioned ill_conditioned_mismatched layer_wise_scale
minimax momentum_utilization multi_objective_pareto noisy_matmul non_markovian
parameter_scale plasticity_summod plasticity_weighted_summod plateau_navigation
quadratic_flip quadratic_outliers quadratic_quantization_aware_training
quadratic_quantized_gradient quadratic_sparse quadratic_varying_scale
quadratic_varying_target rastrigin rosenbrock saddle_point scale_invariant
sparse_gradient sparse_parameters transfer_domain_shift vanishing_gradient wide_linear
xor_digit xor_digit_rnn xor_sequence xor_sequence_rnn xor_spot xor_spot_rnn
""".split()
"""Those of its own program that need no GPU."""
DIFFICULTIES = "trivial", "easy", "medium", "hard"


@dataclass(frozen=True)
class Config:
    """What is trained."""

    optimizers: tuple[str, ...] = (
        DEFAULT,
        "adamw-default",
        "soap-default",
        "muon-default",
    )
    difficulties: tuple[str, ...] = DIFFICULTIES
    """From the easiest on."""
    steps: int = 2000
    seconds: float = 120.0
    """The longest attempt."""
    seeds: int = 2
    folder: str = "results/lightbench"

    def __post_init__(self) -> None:
        check_counts(self, "steps", "seeds")


@dataclass(frozen=True)
class Problem:
    """What a problem gives to LightBench's search.

    Attributes:
        data: returns inputs and targets of a step; None for a model without inputs.
        loss_of: of outputs and targets; None where the outputs are the loss.
        is_solved: of the model and its last loss; returns it and details.
    """

    model: nn.Module
    data: Any
    loss_of: Any
    is_solved: Any


@dataclass(frozen=True)
class Attempt:
    """Attributes: solved_at: the step, None if the problem was not solved."""

    problem: str
    difficulty: str
    optimizer: str
    seed: int
    solved_at: int | None
    seconds: float


class OnCpu(TorchFunctionMode):
    """Tensors that code wants on "cuda" are made on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def load_problem(name: str, difficulty: str, seed: int) -> Problem | None:
    """A problem of LightBench; None if it has no such difficulty.

    Two problems raise TypeError for all but the easiest: version 0.1.1 forgets an
    argument there.
    """
    # what is for its search alone needs packages that it does not name
    helpers = sys.modules.setdefault("heavyball.helpers", MagicMock())
    module = import_module(f"lightbench.{name}")
    utils = import_module("lightbench.utils")
    if isinstance(helpers, MagicMock):
        sys.modules.pop("heavyball.helpers", None)
    problems: list[Problem] = []

    def keep(
        model: Any, data: Any, loss_of: Any, is_solved: Any, *args: Any, **options: Any
    ) -> None:
        dtype = utils._resolve_dtype(options.get("dtype"))
        problems.append(Problem(model.to(dtype), data, loss_of, is_solved))

    options = {
        key: getattr(parameter.default, "default", parameter.default)
        for key, parameter in inspect.signature(module.main).parameters.items()
    }
    options.update(config=difficulty, steps=10**9)
    with patch.object(module, "trial", keep):
        np.random.seed(seed)
        with seeded(seed):
            try:
                module.main(**options)
            except (utils.SkipConfig, TypeError):
                return None
    return problems[0]


def attempt(problem: Problem, name: str, config: Config) -> int | None:
    """The step after which an optimizer has solved a problem; None if it has not."""
    model = copy.deepcopy(problem.model)
    spec = load_optimizer(name)
    optimizer, scheduler = spec.build(model, spec.lr, config.steps)
    start = time.perf_counter()
    for step in range(1, config.steps + 1):
        inputs, targets = problem.data() if problem.data else (None, None)
        outputs = model() if inputs is None else model(inputs)
        loss = outputs if problem.loss_of is None else problem.loss_of(outputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        value = loss.item()
        if problem.is_solved(model, value)[0]:
            return step
        if not isfinite(value) or time.perf_counter() - start > config.seconds:
            break
    return None


def attempts(name: str, optimizer: str, seed: int, config: Config) -> Iterator[Attempt]:
    """From the easiest difficulty to the first that is not solved; harder ones count
    as not solved."""
    fails = False
    for difficulty in config.difficulties:
        problem = load_problem(name, difficulty, seed)
        if problem is None:
            continue
        start = time.perf_counter()
        with seeded(seed):
            solved_at = None if fails else attempt(problem, optimizer, config)
        seconds = round(time.perf_counter() - start, 2)
        fails = solved_at is None
        yield Attempt(name, difficulty, optimizer, seed, solved_at, seconds)


def measure(config: Config) -> list[Attempt]:
    """Makes the attempts that are not on record yet."""
    path = Path(config.folder, "first_attempt.json")
    rows = read_json(path, "attempts") if path.exists() else []
    made = [Attempt(**row) for row in rows]
    known = {(x.problem, x.optimizer, x.seed) for x in made}
    plan = list(product(PROBLEMS, config.optimizers, range(config.seeds)))
    bar = tqdm([x for x in plan if x not in known], unit="problem")
    for name, optimizer, seed in bar:
        bar.set_description(f"{name}, {optimizer}")
        made.extend(attempts(name, optimizer, seed, config))
        write_json(path, [asdict(x) for x in made])
    return [x for x in made if (x.problem, x.optimizer, x.seed) in set(plan)]


def rows_of(made: Sequence[Attempt]) -> list[Mapping[str, str]]:
    """A row for each problem, with the attempts that solve it, of all."""
    rows = []
    for name in dict.fromkeys(x.problem for x in made):
        row = {"problem": name}
        of_problem = [x for x in made if x.problem == name]
        for optimizer in dict.fromkeys(x.optimizer for x in made):
            solved = [x.solved_at for x in of_problem if x.optimizer == optimizer]
            row[optimizer] = f"{sum(x is not None for x in solved)} of {len(solved)}"
        rows.append(row)
    return rows


def summary(made: Sequence[Attempt]) -> str:
    lines = []
    for optimizer in dict.fromkeys(x.optimizer for x in made):
        of_optimizer = [x for x in made if x.optimizer == optimizer]
        seconds = sum(x.seconds for x in of_optimizer)
        share = fmean(x.solved_at is not None for x in of_optimizer)
        lines.append(
            f"{optimizer} solves {share:.1%} of "
            f"{len(of_optimizer)} problems in {seconds:,.0f} s."
        )
    return "\n".join(lines)


def run(config: Config) -> None:
    if find_spec("lightbench") is None:
        raise ValueError(
            "LightBench is not installed. Install it: pip install lightbench==0.1.1"
        )
    folder = Path(config.folder)
    make_folder(folder)
    with nullcontext() if torch.cuda.is_available() else OnCpu():
        made = measure(config)
    rows, text = rows_of(made), summary(made)
    (folder / "first_attempt.md").write_text(f"{text}\n\n{markdown_table(rows)}\n")
    print(f"{text_table(rows)}\n\n{text}\nAll results are in {config.folder}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
