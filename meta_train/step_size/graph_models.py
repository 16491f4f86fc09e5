"""Compares graph networks that predict the step size, on kinds that are left out.

`python -m meta_train.step_size.graph_models --folder runs/step_size --device cuda`
reads the outcomes there, prints a table and writes it to `graph_models.json`. Graphs
are cached in `graph_inputs.pt`, and fits in `graph_fits.jsonl`, from which it resumes.
1,300 networks of all sizes take minutes on a GPU. With `--largest 4000` each of the 90
fits takes a minute on a CPU.

NG-GNN and NG-T read the network at its initialisation: weights and first gradients.
Rows of features are the MLPs of `compare`. Networks without matrices and trained ones
are left out of the fits; there the multiplier is 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import cli
from harness.files import write_json
from harness.tables import text_table
from meta_train.step_size.compare import Row, folds, formatted, left_out, scored
from meta_train.step_size.dataset import Data, read_data
from meta_train.step_size.feature_sets import feature_sets
from meta_train.step_size.graph_fits import Examples, Settings, Sizes, fit_all
from meta_train.step_size.graph_inputs import FILE, SEED, read_inputs
from meta_train.step_size.models import LEAST_SCALE, Ensemble, utility
from meta_train.step_size.outcomes import refined

FITS = "graph_fits.jsonl"
CAUTION = 0.5  # standard deviations between seeds
FARTHEST = 3.0  # standard deviations of a feature from its mean
SETS = "horizon", "chosen", "all"  # of features, for comparison


@dataclass(frozen=True)
class Config:
    """Options of the command line.

    largest: elements of the networks that are compared, at most.
    """

    folder: str = "runs/step_size"
    device: str = "cuda"
    largest: float = float("inf")
    folds: int = 5
    seeds: int = 3
    width: int = Sizes.width
    epochs: int = Settings.epochs
    batch: int = Settings.batch


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = of_small_networks(read_data(folder), config.largest)
    examples = read_examples(folder, data, config.folds)
    settings = Settings(
        sizes=Sizes(width=config.width),
        epochs=config.epochs,
        batch=config.batch,
        seeds=config.seeds,
    )
    found = fit_all(examples, settings, folder / FITS, config.device)
    rows = [*rows_of_features(data, config.folds), *rows_of_graphs(found, data)]
    print(text_table([formatted(row) for row in rows]))
    content = {"trainings": len(data.steps), "folds": config.folds, "rows": rows}
    write_json(folder / "graph_models.json", content)


def of_small_networks(data: Data, largest: float) -> Data:
    """The trainings of networks with at most `largest` elements."""
    sizes = data.columns(["log elements"])[:, 0, 0]
    (chosen,) = np.nonzero(sizes <= math.log(largest))
    return data.at(chosen)


def read_examples(folder: Path, data: Data, count: int) -> Examples:
    """The trainings of a folder that models are fitted to. count: of folds."""
    chosen = data.is_in_range
    trainings = list(compress(data.trainings, chosen))
    fine, curves = refined(data.log_multipliers, data.gains[chosen].mean(2))
    sets = feature_sets(data.names)
    others = {}
    for name in ("horizon", "all"):
        x = data.columns(sets[name])[chosen, SEED]
        x = (x - x.mean(0)) / x.std(0).clip(LEAST_SCALE)
        others[name] = torch.tensor(x.clip(-FARTHEST, FARTHEST))
    return Examples(
        inputs=read_inputs(trainings, folder / FILE),
        others=others,
        fine=torch.tensor(fine),
        curves=torch.tensor(utility(curves)),
        folds=torch.tensor(folds(data.kinds, count)[chosen]),
    )


def rows_of_features(data: Data, count: int) -> Iterator[Row]:
    """Of MLPs that read features by hand. count: of folds."""
    sets = feature_sets(data.names)
    for name in SETS:
        places = left_out(
            lambda: Ensemble(data.log_multipliers), sets[name], data, count=count
        )
        yield scored(places, data, f"MLPs, {name}")


def rows_of_graphs(found: dict[str, Tensor], data: Data) -> Iterator[Row]:
    """For each variant that of the seeds together, and the mean of single seeds.

    Errors of the latter are standard deviations between seeds.
    """
    for name, places in found.items():
        count = len(places)
        together = _everywhere(cautious(places), data)
        yield scored(together, data, f"{name}, {count} seeds")
        singles = []
        for own in places:
            singles.append(scored(_everywhere(own, data), data, name))
        yield _mean_row(singles, f"{name}, one of {count} seeds")


def cautious(places: Tensor) -> Tensor:
    """Means over seeds (seeds, n), moved towards 0: see `StepPredictor`."""
    mean = places.mean(0)
    size = mean.abs() - CAUTION * places.std(0, correction=0)
    return mean.sign() * size.clamp(min=0)


def _everywhere(places: Tensor, data: Data) -> np.ndarray:
    """Predictions for all trainings and both seeds, (n, 2); 0 out of range."""
    found = np.zeros(data.x.shape[:2])
    found[data.is_in_range] = places.numpy()[:, None]
    return found


def _mean_row(rows: list[Row], label: str) -> Row:
    found: Row = {"model": label}
    for name in rows[0]:
        if name == "model" or name.endswith(" error"):
            continue
        values = [float(row[name]) for row in rows]
        found[name] = float(np.mean(values))
        if f"{name} error" in rows[0]:
            found[f"{name} error"] = float(np.std(values))
    return found


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
