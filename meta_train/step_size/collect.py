"""Measures random trainings at several step sizes.

`python -m meta_train.step_size.collect --first 0 --count 1000` appends one line per
training to `runs/step_size/outcomes.jsonl`. Trainings that are there already are left
out: it resumes, and several processes can share the work by different numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from harness import cli
from harness.files import append_line, make_folder, read_lines
from meta_train.step_size.copies import MULTIPLIERS, Factors, measured
from meta_train.step_size.trainings import Training, draw
from ngopt import build_graph
from ngopt.learned_step.features import layer_positions
from ngopt.roles.from_graph import roles_of

DIGITS = 5
SLOPES = {"slope -1": -1.0, "slope 1": 1.0}
"""log2 of the factor of the last layer by variant; the first has the inverse."""

Record = dict[str, Any]


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
    outcome = measured(training, list(variants.values()))
    return {
        **asdict(training),
        "kind": training.kind,
        "first": numbers(outcome.first),
        "validation": numbers(outcome.validation),
        "torch": torch.__version__,
        "variants": list(variants),
        "seconds": round(perf_counter() - start, 2),
    }


def numbers(x: Tensor) -> Any:
    """Nested lists of rounded numbers, None where they are not finite."""
    if x.dim() == 0:
        value = float(x)
        return float(f"{value:.{DIGITS}g}") if x.isfinite() else None
    return [numbers(row) for row in x]


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
