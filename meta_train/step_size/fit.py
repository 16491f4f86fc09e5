"""Fits the predictor of the step size to all measured trainings.

`python -m meta_train.step_size.fit --folder runs/step_size` writes
`step_size.json` there: `Predictor` with the features `CHOSEN`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness import cli
from meta_train.step_size.compare import Data, gains_at, read_data
from meta_train.step_size.feature_sets import CHOSEN
from meta_train.step_size.models import Ensemble
from meta_train.step_size.predictor import Predictor


@dataclass(frozen=True)
class Config:
    """Options of the command line. folder: of the outcomes."""

    folder: str = "runs/step_size"


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = read_data(folder)
    predictor = fitted(data)
    path = folder / "step_size.json"
    predictor.write(path, trainings=len(data.steps), kinds=len(set(data.kinds)))
    x = data.columns(CHOSEN)
    places = np.stack([predictor.predict(x[:, seed]) for seed in (0, 1)], 1)
    gain = gains_at(places, data).mean()
    print(f"'{path}': {len(data.steps)} trainings, gain {gain:.1f} % on them")


def fitted(data: Data) -> Predictor:
    """The predictor, fitted to all trainings."""
    model = Ensemble(data.log_multipliers, CHOSEN)
    everything = np.ones(len(data.steps), dtype=bool)
    model.fit(*data.examples(CHOSEN, everything))
    assert model.predictor is not None
    return model.predictor


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
