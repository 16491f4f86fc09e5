"""Measured trainings with their features, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.files import read_lines
from meta_train.step_size.feature_sets import read_features
from meta_train.step_size.outcomes import Outcomes, gains_of, read_outcomes
from meta_train.step_size.role_variants import SLOPES

TRAINED = 0.02  # mean excess of trained networks, at least
TABLE = 0.5  # share of tables in a network that is mostly tables
EXAMPLES = 4  # of a training: two seeds, with and without names of parameters


@dataclass(frozen=True)
class Data(Outcomes):
    """n measured trainings with their features.

    names: of d features. x: of named parameters, (n, 2, d). unnamed: of the same
    without names.
    """

    names: list[str]
    x: np.ndarray
    unnamed: np.ndarray

    @cached_property
    def numbers(self) -> dict[int, int]:
        """Indices of trainings by their seeds."""
        return {training.seed: i for i, training in enumerate(self.trainings)}

    @property
    def is_in_range(self) -> np.ndarray:
        """Of trainings that models are fitted to, (n,): see `examples`."""
        excess = self.columns(["mean excess"])[:, :, 0].max(1)
        is_empty = self.columns(["no matrices"])[:, 0, 0] > 0
        is_table = self.columns(["share of tables"])[:, 0, 0] > TABLE
        return (excess < TRAINED) & ~is_empty & ~is_table

    def columns(self, names: Sequence[str], is_named: bool = True) -> np.ndarray:
        """Features by name, (n, 2, len(names))."""
        x = self.x if is_named else self.unnamed
        return x[:, :, [self.names.index(name) for name in names]]

    def at(self, chosen: Sequence[int] | np.ndarray) -> "Data":
        """The trainings with these indices."""
        return replace(
            self,
            trainings=[self.trainings[i] for i in chosen],
            x=self.x[chosen],
            unnamed=self.unnamed[chosen],
            gains=self.gains[chosen],
            files=self.files[chosen],
        )

    def examples(
        self, names: Sequence[str], chosen: np.ndarray | bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (4k, d), mean gains (4k, m) and kinds (4k,) of k chosen trainings.

        The features of each seed are an example, with and without names of
        parameters. Left out are networks without matrices, whose size is unknown,
        trained ones, which are few and unlike larger trained networks, and those that
        are mostly tables, whose best steps vary by factors of ten. They are beyond the
        range of a `Predictor`.
        """
        chosen = chosen & self.is_in_range
        gains = self.gains[chosen].mean(2)
        kinds = self.kinds[chosen]
        rows = []
        for is_named in (True, False):
            x = self.columns(names, is_named)[chosen]
            rows += [x[:, 0], x[:, 1]]
        found = np.concatenate(rows)
        return (
            found,
            np.concatenate([gains] * EXAMPLES),
            np.concatenate([kinds] * EXAMPLES),
        )


def read_data(folder: Path) -> Data:
    """The outcomes in a folder. Raises ValueError if there are none."""
    outcomes = read_outcomes(folder)
    names, x = read_features(outcomes.trainings, folder / "features.jsonl")
    return Data(**vars(outcomes), names=names, x=x[:, 0], unnamed=x[:, 1])


class Slopes(NamedTuple):
    """Trainings with other steps of the last layers.

    data: `log_multipliers` are those of the last layer, and the opposite ones of the
    first; gains are those over the factor alone. log_factors: log2 of the factors of
    all layers, predicted by models that are fitted to other kinds, (n,).
    """

    data: Data
    log_factors: np.ndarray


def read_slopes(folder: Path, data: Data) -> Slopes | None:
    """The records of `collect_slopes` in a folder, None if there are none.

    data: the outcomes of these trainings, among others.
    """
    records = read_lines(sorted(folder.glob("slopes*.jsonl*")))
    if not records:
        return None
    chosen, gains, factors = [], [], []
    for record in records:
        found = gains_of(record)
        chosen.append(data.numbers[record["seed"]])
        gains.append([found[name] for name in SLOPES])
        factors.append(record["multiplier"])
    slopes = np.array(list(SLOPES.values()))
    own = replace(data.at(chosen), gains=np.array(gains), log_multipliers=slopes)
    return Slopes(own, np.log2(factors))
