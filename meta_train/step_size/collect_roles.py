"""Measures trainings again with other step sizes of single roles.

`python -m meta_train.step_size.collect_roles --count 1000` takes the trainings of
`runs/step_size/outcomes*.jsonl`, each at the multiplier that was best there, and
appends one line per training to `runs/step_size/roles.jsonl`. It resumes.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from harness import cli
from meta_train.step_size.collect import Record, append_missing, measured_variants
from meta_train.step_size.models import best_of
from meta_train.step_size.outcomes import read_outcomes
from meta_train.step_size.role_variants import role_variants
from meta_train.step_size.trainings import Training

MAX_LOG2 = 2.0  # largest |log2| of the multiplier


@dataclass(frozen=True)
class Config:
    """Options of the command line. first, count: which trainings, by their order."""

    first: int = 0
    count: int = 1000
    folder: str = "runs/step_size"


def main(config: Config) -> None:
    folder = Path(config.folder)
    outcomes = read_outcomes(folder)
    best = best_of(outcomes.gains.mean(2), outcomes.log_multipliers)
    best = best.clip(-MAX_LOG2, MAX_LOG2)
    wanted = {}
    pairs = zip(outcomes.trainings, best, strict=True)
    last = config.first + config.count
    for training, log_multiplier in islice(pairs, config.first, last):
        multiplier = 2.0 ** float(log_multiplier)
        wanted[training.seed] = partial(measure, training, multiplier)
    append_missing(folder / "roles.jsonl", wanted, "roles*.jsonl*")


def measure(training: Training, multiplier: float) -> Record:
    """The record of a training; multiplier: of the step size in all variants."""
    record = measured_variants(training, role_variants(training, multiplier))
    return {**record, "multiplier": multiplier}


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
