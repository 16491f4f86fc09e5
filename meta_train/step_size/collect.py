"""Measures random trainings at several step sizes.

`python -m meta_train.step_size.collect --first 0 --count 1000` appends one line per
training to `runs/step_size/outcomes.jsonl`. Trainings that are there already are left
out: it resumes, and several processes can share the work by different numbers.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from harness import cli
from harness.files import make_folder
from harness.json_lines import append_line, read_lines
from meta_train.step_size.copies import (
    CHECKS,
    MULTIPLIERS,
    SEEDS,
    SIGNALS,
    Outcome,
    measured,
    multiples,
)
from meta_train.step_size.trainings import Training, draw, family_of
from ngopt.functional import Hyper

DIGITS = 6

Record = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Options of the command line.

    first, count: seeds of the trainings. family: those of other families are left out.
    """

    first: int = 0
    count: int = 1000
    family: str | None = None
    folder: str = "runs/step_size"


def main(config: Config) -> None:
    folder = Path(config.folder)
    make_folder(folder)
    path = folder / "outcomes.jsonl"
    known = {record["seed"] for record in read_lines([path])}
    seeds = range(config.first, config.first + config.count)
    wanted = []
    for seed in seeds:
        is_chosen = config.family in (None, family_of(seed))
        if is_chosen and seed not in known:
            wanted.append(partial(measure, seed))
    append_records(path, wanted)
    print(f"{len(wanted)} new trainings in '{path}'")


def append_records(path: Path, measures: Sequence[Callable[[], Record]]) -> None:
    """Appends what these functions return to a file of JSON lines."""
    progress = tqdm(measures, "trainings")
    for own in progress:
        record = own()
        progress.set_postfix_str(f"{record['kind']}, {record['seconds']} s")
        append_line(path, record)


def measure(seed: int) -> Record:
    """The record of a training."""
    start = perf_counter()
    training = draw(seed)
    outcome = measured(training, multiples(training))
    signals = numbers(outcome.signals.movedim(-1, 0))
    return {
        **record_of(training, outcome),
        "multipliers": MULTIPLIERS,
        "checks": CHECKS,
        "signals": dict(zip(SIGNALS, signals, strict=True)),
        "seconds": round(perf_counter() - start, 2),
        "machine": platform.machine(),
    }


def measured_variants(training: Training, variants: Mapping[str, Hyper]) -> Record:
    """The record of a training with several settings, by name."""
    start = perf_counter()
    outcome = measured(training, list(variants.values()))
    return {
        **record_of(training, outcome),
        "variants": list(variants),
        "seconds": round(perf_counter() - start, 2),
    }


def record_of(training: Training, outcome: Outcome) -> Record:
    """What a training is, and its losses by variant and seed."""
    return {
        **asdict(training),
        "kind": training.kind,
        "seeds": SEEDS,
        "first": numbers(outcome.first),
        "validation": numbers(outcome.validation),
        "train": numbers(outcome.train),
        "torch": torch.__version__,
    }


def numbers(x: Tensor) -> Any:
    """Nested lists of rounded numbers, None where they are not finite."""
    if x.dim() == 0:
        value = float(x)
        return float(f"{value:.{DIGITS}g}") if x.isfinite() else None
    return [numbers(row) for row in x]


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
