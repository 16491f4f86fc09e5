"""Measures weights with a step predictor on trainings that they were not fitted to.

`python -m meta_train.step_size.check --first 900000 --count 300` draws trainings from
these seeds. Each has the rule's step sizes, and those times the predicted factors of
the seed. One line per training is appended to `runs/step_size/checks.jsonl`; the
command resumes, and prints a table of all lines.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from harness import cli
from harness.files import make_folder, read_lines
from harness.tables import text_table
from meta_train.step_size.collect import Record, append_missing, measured_record
from meta_train.step_size.compare import formatted, row_of
from meta_train.step_size.copies import SEEDS
from meta_train.step_size.outcomes import features_of, log_losses
from meta_train.step_size.trainings import draw
from ngopt import build_graph
from ngopt.learned_step.features import layer_positions, matrices_of
from ngopt.learned_step.predictor import LearnedStep, StepPredictor, layer_factors
from ngopt.pretrained import load_pretrained
from ngopt.roles.from_graph import roles_of

RULE = "the rule"


@dataclass(frozen=True)
class Config:
    """Options of the command line.

    first, count: seeds of the trainings, which should be those of no outcomes.
    """

    first: int = 900_000
    count: int = 300
    rule: str = "learned-step"
    folder: str = "runs/step_size"


def main(config: Config) -> None:
    multiplier = getattr(load_pretrained(config.rule), "multiplier", None)
    if not isinstance(multiplier, LearnedStep):
        raise ValueError(
            f"rule: expected one with a step predictor; got '{config.rule}'"
        )
    folder = Path(config.folder)
    make_folder(folder)
    path = folder / "checks.jsonl"
    wanted = {}
    for seed in range(config.first, config.first + config.count):
        wanted[seed] = partial(measure, seed, multiplier.predictor)
    append_missing(path, wanted)
    records = read_lines([path])
    steps = np.array([record["steps"] for record in records])
    gains = np.array([gain_of(record) for record in records])
    print(text_table([formatted(row_of(config.rule, gains, steps))]))


def measure(seed: int, predictor: StepPredictor) -> Record:
    """The record of the training that is drawn from a seed."""
    training = draw(seed)
    roles = roles_of(build_graph(training.build(0).named_parameters()))
    positions = torch.tensor(layer_positions(roles))
    variants = {RULE: [1.0] * len(roles)}
    named, _ = features_of(training)
    for own_seed, x in zip(SEEDS, torch.tensor(named), strict=True):
        predicted = predictor.predict(x.unsqueeze(0)).squeeze(0)
        predicted = predicted * bool(matrices_of(roles))
        variants[f"seed {own_seed}"] = layer_factors(predicted, positions).tolist()
    return measured_record(training, variants)


def gain_of(record: Record) -> float:
    """Percent, the mean of both seeds, each with its own factors."""
    base, *others = log_losses(record)
    own = np.diagonal(np.stack(others))
    return 100 * float((base - own).mean())


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
