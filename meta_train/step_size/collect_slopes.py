"""Measures trainings with longer steps of the last layers, or of the first.

`python -m meta_train.step_size.collect_slopes --count 1000` takes trainings of
`runs/step_size/outcomes*.jsonl` in random order, each at the factor that is predicted
by a model fitted to other kinds. At the best factor for all layers the best slope is
another one. It appends one line per training to `runs/step_size/slopes.jsonl`, and
resumes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from harness import cli
from meta_train.step_size.collect import Record, append_missing, measured_variants
from meta_train.step_size.compare import left_out
from meta_train.step_size.dataset import read_data
from meta_train.step_size.feature_sets import CHOSEN
from meta_train.step_size.models import Ensemble
from meta_train.step_size.role_variants import SLOPES, role_variants
from meta_train.step_size.trainings import Training
from ngopt.learned_step.features import MIN_LAYERS


@dataclass(frozen=True)
class Config:
    """Options of the command line.

    first, count: which trainings, in random order. steps: those of shorter trainings
    are left out.
    """

    first: int = 0
    count: int = 1000
    steps: int = 1
    folder: str = "runs/step_size"


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = read_data(folder)
    places = left_out(lambda: Ensemble(data.log_multipliers), CHOSEN, data).mean(1)
    matrices = np.exp(data.columns(["log matrices"])[:, 0, 0]).round()
    is_measured = data.is_in_range & (matrices >= MIN_LAYERS)
    is_measured &= data.steps >= config.steps
    order = np.random.RandomState(1).permutation(len(places))
    wanted = {}
    for i in order[config.first : config.first + config.count]:
        if is_measured[i]:
            training, multiplier = data.trainings[i], 2.0 ** float(places[i])
            wanted[training.seed] = partial(measure, training, multiplier)
    append_missing(folder / "slopes.jsonl", wanted, "slopes*.jsonl*")


def measure(training: Training, multiplier: float) -> Record:
    """The record of a training; multiplier: of the step size in all variants."""
    every = role_variants(training, multiplier)
    record = measured_variants(training, {name: every[name] for name in SLOPES})
    return {**record, "multiplier": multiplier}


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
