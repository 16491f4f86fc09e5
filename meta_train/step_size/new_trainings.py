"""Measures weights with a step predictor on new trainings.

`python -m meta_train.step_size.new_trainings --first 190000 --count 400` draws
trainings from these seeds. Each has the default's step sizes, those times the predicted
factor, and those times the factors of all layers. Predictions are means over two seeds.
One line per training is appended to `runs/step_size/new_trainings.jsonl`; the command
resumes, and prints a table of all lines.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from harness import cli
from harness.files import make_folder, read_lines
from harness.tables import text_table
from meta_train.step_size.collect import Record, append_missing, measured_variants
from meta_train.step_size.compare import formatted, row_of
from meta_train.step_size.feature_sets import CHOSEN, features_of
from meta_train.step_size.outcomes import UNCHANGED, gains_of
from meta_train.step_size.trainings import Training, draw, started
from ngopt import build_graph
from ngopt.functional import Hyper
from ngopt.learned_step.features import layer_positions, matrices_of
from ngopt.learned_step.predictor import LearnedStep, StepPredictor, layer_factors
from ngopt.pretrained import load_pretrained
from ngopt.roles.from_graph import roles_of


@dataclass(frozen=True)
class Config:
    """Options of the command line.

    first, count: seeds of the trainings, which should be those of no outcomes.
    """

    first: int = 190_000
    count: int = 400
    weights: str = "learned-step"
    folder: str = "runs/step_size"


def main(config: Config) -> None:
    multiplier = getattr(load_pretrained(config.weights), "multiplier", None)
    if not isinstance(multiplier, LearnedStep):
        raise ValueError(
            f"weights: expected some with a step predictor; got '{config.weights}'"
        )
    folder = Path(config.folder)
    make_folder(folder)
    path = folder / "new_trainings.jsonl"
    wanted = {}
    for seed in range(config.first, config.first + config.count):
        wanted[seed] = partial(measure, seed, multiplier.predictor)
    append_missing(path, wanted)
    records = read_lines([path])
    steps = np.array([record["steps"] for record in records])
    gains = [gains_of(record) for record in records]
    rows = []
    for name in gains[0]:
        own = 100 * np.array([found[name].mean() for found in gains])
        rows.append(formatted(row_of(name, own, steps)))
    print(f"{len(records)} new trainings")
    print(text_table(rows))


def measure(seed: int, predictor: StepPredictor) -> Record:
    """The record of the training that is drawn from a seed."""
    training = draw(seed)
    return measured_variants(training, predicted_variants(training, predictor))


def predicted_variants(
    training: Training, predictor: StepPredictor
) -> dict[str, Hyper]:
    """Step sizes by name, in units of the default's."""
    roles = roles_of(build_graph(started(training, 0).named_parameters()))
    named, _ = features_of(training)
    x = torch.tensor([[found[name] for name in CHOSEN] for found in named])
    factor, slope = predictor.predict(x).mean(1)
    factor = factor * bool(matrices_of(roles))
    positions = torch.tensor(layer_positions(roles))
    lr = {
        UNCHANGED: torch.ones_like(positions),
        "factor": layer_factors(factor, 0 * slope, positions),
        "factor and slope": layer_factors(factor, slope, positions),
    }
    own_decay = [None] * len(roles)
    return {name: Hyper(own.tolist(), own_decay) for name, own in lr.items()}


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
