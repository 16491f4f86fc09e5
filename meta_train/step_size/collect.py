"""Measures random trainings at several step sizes.

`python -m meta_train.step_size.collect --first 0 --count 1000` appends one line per
training to `runs/step_size/outcomes.jsonl`. Trainings that are there already are left
out: it resumes, and several processes can share the work by different numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from harness import cli
from harness.files import append_line, make_folder, read_lines
from harness.random import seeded
from meta_train.copies import Copies, LossOf
from meta_train.step_size.tasks import Loss
from meta_train.step_size.trainings import Training, draw
from ngopt import build_graph
from ngopt.learned_step.features import layer_positions
from ngopt.roles.from_graph import roles_of
from ngopt.soap.soap import Soap

MULTIPLIERS = 0.5, 1.0, 2.0
SEEDS = 0, 1
DIGITS = 5
SLOPES = {"slope -1": -1.0, "slope 1": 1.0}
"""log2 of the factor of the last layer by variant; the first has the inverse."""

Record = dict[str, Any]

Factors = Sequence[float]
"""Of the step sizes of all parameters."""


@dataclass(frozen=True)
class Config:
    """Options of the command line. first, count: seeds of the trainings; shorter ones
    than `least_steps` are left out."""

    first: int = 0
    count: int = 1000
    least_steps: int = 0
    folder: str = "runs/step_size"


def main(config: Config) -> None:
    print(f"trainings are in '{append_missing(config, 'outcomes.jsonl', measure)}'")


def append_missing(config: Config, name: str, measure: Callable[[int], Record]) -> Path:
    """Appends the records of new seeds to a file of JSON lines; returns its path."""
    path = Path(config.folder, name)
    make_folder(path.parent)
    known = {record["seed"] for record in read_lines(path.parent.glob(name))}
    seeds = range(config.first, config.first + config.count)
    progress = tqdm([seed for seed in seeds if seed not in known], "trainings")
    for seed in progress:
        if draw(seed).steps < config.least_steps:
            continue
        record = measure(seed)
        progress.set_postfix_str(f"{record['kind']}, {record['seconds']} s")
        append_line(path, record)
    return path


def measure(seed: int) -> Record:
    """The record of a training at several multiples of the default's step sizes, and
    with other ones of the first and last layers."""
    training = draw(seed)
    roles = roles_of(build_graph(training.build(0).named_parameters()))
    positions = layer_positions(roles)
    variants = {f"{factor:g}": [factor] * len(roles) for factor in MULTIPLIERS}
    if any(positions):
        for name, power in SLOPES.items():
            variants[name] = [2.0 ** (power * x) for x in positions]
    return measured_record(training, variants)


def measured_record(training: Training, variants: Mapping[str, Factors]) -> Record:
    """What a training is, and its losses by variant and seed."""
    start = perf_counter()
    first, validation = measured(training, list(variants.values()))
    return {
        **asdict(training),
        "kind": training.kind,
        "first": numbers(first),
        "validation": numbers(validation),
        "torch": torch.__version__,
        "variants": list(variants),
        "seconds": round(perf_counter() - start, 2),
    }


def measured(training: Training, variants: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Validation losses with each of `variants` and each of `SEEDS`.

    Of the initial weights, (seeds,), and at the end, (variants, seeds); inf if a run
    diverged.
    """
    copies = copies_of(training, variants)
    first = validation_loss(copies, training)[: len(SEEDS)]
    task = training.task
    with seeded(training.seed, 4):
        for step in range(training.steps):
            chosen = [training.indices(seed, step) for seed in SEEDS]
            indices = torch.stack(chosen).repeat(len(variants), 1)
            copies.step((task.inputs[indices], task.targets[indices]))
    validation = validation_loss(copies, training).view(len(variants), len(SEEDS))
    return first, validation.nan_to_num(torch.inf)


def copies_of(training: Training, variants: Sequence[Factors]) -> Copies:
    """A copy for each variant and seed, seeds fastest."""
    models = [training.build(seed) for _ in variants for seed in SEEDS]
    factors = [x for variant in variants for x in list(variant) * len(SEEDS)]
    loss = on_outputs(training.task.loss)
    return Copies(models, loss, Soap(), training.steps, factors)


def validation_loss(copies: Copies, training: Training) -> Tensor:
    """Of all copies, (copies,)."""
    task = training.task
    examples = task.validation_inputs, task.validation_targets
    return copies.evaluate(on_outputs(task.score), examples)


def on_outputs(function: Loss) -> LossOf:
    """A function of outputs and targets, as one of a network and a batch of both."""
    return lambda model, batch: function(model(batch[0]), batch[1])


def numbers(x: Tensor) -> Any:
    """Nested lists of rounded numbers, None where they are not finite."""
    if x.dim() == 0:
        value = float(x)
        return float(f"{value:.{DIGITS}g}") if x.isfinite() else None
    return [numbers(row) for row in x]


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
