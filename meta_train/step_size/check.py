"""Measures a rule with a step predictor on trainings that it was not fitted to.

`python -m meta_train.step_size.check --first 910000 --count 300` draws trainings from
these seeds. Each has the base rule's step sizes, and those times the predicted factors
of each seed. One line per training is appended to `runs/step_size/checks.jsonl`; the
command resumes, and prints a table of all lines.
"""

from dataclasses import dataclass

import numpy as np

from harness import cli
from harness.files import read_lines
from harness.tables import text_table
from meta_train.step_size import collect
from meta_train.step_size.collect import (
    SEEDS,
    Factors,
    Record,
    append_missing,
    measured_record,
)
from meta_train.step_size.fit import formatted, row_of
from meta_train.step_size.outcomes import after_first_step, log_losses
from meta_train.step_size.trainings import draw
from ngopt.functional import UpdateRule
from ngopt.learned_step.predictor import LearnedStep
from ngopt.pretrained import load_pretrained


@dataclass(frozen=True)
class Config(collect.Config):
    """first: beyond the seeds of all outcomes. rule: a name or path."""

    first: int = 910_000
    count: int = 300
    rule: str = "learned-step"


def main(config: Config) -> None:
    rule = load_pretrained(config.rule)
    if not isinstance(getattr(rule, "multiplier", None), LearnedStep):
        raise ValueError(f"rule: expected a step predictor; got '{config.rule}'")
    path = append_missing(config, "checks.jsonl", lambda seed: measure(seed, rule))
    records = read_lines([path])
    steps = np.array([record["steps"] for record in records])
    gains = np.array([gain_of(record) for record in records])
    print(text_table([formatted(row_of(config.rule, gains, steps))]))


def measure(seed: int, rule: UpdateRule) -> Record:
    """The record of the training that is drawn from a seed.

    Seeds whose factors are all 1 have no variant: their runs equal the base rule's.
    """
    training = draw(seed)
    variants: dict[str, Factors] = {}
    for of_seed in SEEDS:
        state = after_first_step(training, of_seed, rule).state.values()
        factors = [float(record["predicted"]) for record in state]
        variants.setdefault("base rule", [1.0] * len(factors))
        if set(factors) != {1.0}:
            variants[f"seed {of_seed}"] = factors
    return measured_record(training, variants)


def gain_of(record: Record) -> float:
    """Percent, the mean over seeds, each with its own factors."""
    logs = dict(zip(record["variants"], log_losses(record), strict=True))
    base = logs["base rule"]
    falls = [(base - logs.get(f"seed {seed}", base))[seed] for seed in SEEDS]
    return 100 * float(np.mean(falls))


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
