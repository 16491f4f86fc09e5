"""Compares predictors of the step size on kinds of trainings that are left out.

`python -m meta_train.step_size.compare --folder runs/step_size` reads all files
`outcomes*.jsonl` there, also compressed ones (.gz), prints a table and writes it to
`compare.json`. Features are cached in `features.jsonl`. Gains are 100 x the fall of log
validation loss against multiplier 1, means over two seeds; their errors are standard
errors over trainings. If there are several files, the last rows measure the trainings
of each later file with a model that is fitted to the files before it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from harness import cli
from harness.files import write_json
from harness.tables import text_table
from meta_train.step_size.dataset import Data, Slopes, read_data, read_slopes
from meta_train.step_size.feature_sets import CHOSEN, feature_sets
from meta_train.step_size.models import (
    DEFAULT,
    OF_SLOPES,
    Constant,
    Ensemble,
    Model,
    Settings,
    Trees,
    best_of,
)
from meta_train.step_size.outcomes import interpolated, refined

FOLDS = 10
SHORT, LONG = 400, 1000  # steps: at most, at least
LITTLE, MUCH = 2, 15  # percent

Row = dict[str, float | str]


@dataclass(frozen=True)
class Config:
    """Options of the command line. folder: of the outcomes."""

    folder: str = "runs/step_size"


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = read_data(folder)
    print(f"{len(data.steps)} trainings of {len(set(data.kinds))} kinds", flush=True)
    rows = compared(data)
    print(text_table([formatted(row) for row in rows]))
    found = {"trainings": len(data.steps), "rows": rows}
    slopes = read_slopes(folder, data)
    if slopes is not None:
        rows = with_slopes(data, slopes)
        kinds = slopes.data.kinds
        print(f"slopes: {len(kinds)} trainings of {len(set(kinds))} kinds")
        print(text_table([formatted(row) for row in rows]))
        found["slopes"] = rows
    write_json(folder / "compare.json", found)


def compared(data: Data) -> list[Row]:
    """A row for each model."""
    sets = feature_sets(data.names)
    grid = data.log_multipliers

    def ensemble(settings: Settings = DEFAULT) -> Callable[[], Model]:
        return lambda: Ensemble(grid, settings)

    rows = [scored(np.zeros(data.x.shape[:2]), data, "multiplier 1")]

    def add(label: str, names: Sequence[str], make: Callable[[], Model]) -> None:
        print(f"{label} ...", flush=True)
        rows.append(scored(left_out(make, names, data), data, label))

    add("constant", sets["horizon"], lambda: Constant(grid))
    for name, names in sets.items():
        if name in ("chosen", "graph"):
            add(f"linear, {name}", names, ensemble(Settings(width=0)))
        add(f"MLPs, {name}", names, ensemble())
    chosen = sets["chosen"]
    for caution in (0.0, 1.0):
        label = f"MLPs, chosen, caution {caution:g}"
        add(label, chosen, ensemble(Settings(caution=caution)))
    label = "MLPs, chosen, parameters without names"
    places = left_out(ensemble(), chosen, data, is_named=False)
    rows.append(scored(places, data, label))
    add("one MLP, chosen", chosen, ensemble(Settings(members=1)))
    add("trees, chosen", chosen, lambda: Trees(grid))
    add("trees, graph", sets["graph"], lambda: Trees(grid))
    other = [best_of(data.gains[:, :, 1 - seed], grid) for seed in (0, 1)]
    rows.append(scored(np.stack(other, 1), data, "best of the other seed"))
    return [*rows, *on_later(data, ensemble())]


def with_slopes(data: Data, slopes: Slopes) -> list[Row]:
    """Rows of factors alone, of slopes alone, and of both, on the same trainings."""
    own = slopes.data
    chosen = [data.numbers[training.seed] for training in own.trainings]
    places = np.stack([slopes.log_factors] * 2, 1)
    factor = gains_at(places, data.at(chosen))
    rows = [row_of("factor", factor, own.steps, places)]
    grid = own.log_multipliers

    def add(label: str, names: Sequence[str], settings: Settings = OF_SLOPES) -> None:
        places = left_out(lambda: Ensemble(grid, settings), names, own)
        gains = gains_at(places, own)
        rows.append(row_of(f"slope, {label}", gains, own.steps, places))
        if label == "chosen":
            rows.append(row_of("factor and slope", factor + gains, own.steps))

    for name, names in feature_sets(data.names).items():
        add(name, names)
    for caution in (0.0, 0.5):
        add(f"chosen, caution {caution:g}", CHOSEN, Settings(caution=caution))
    other = [own.gains[:, :, 1 - seed].argmax(1) for seed in (0, 1)]
    places = grid[np.stack(other, 1)]
    gains = gains_at(places, own)
    return [*rows, row_of("slope of the other seed", gains, own.steps, places)]


def on_later(data: Data, make: Callable[[], Model]) -> Iterator[Row]:
    """Rows of models that are fitted to the files before each later file.

    They are measured on the trainings of this file, and on those of its new kinds.
    """
    for number in range(1, data.files.max() + 1):
        is_known, is_later = data.files < number, data.files == number
        is_new = is_later & ~np.isin(data.kinds, data.kinds[is_known])
        model = make()
        model.fit(*data.examples(CHOSEN, is_known))
        places = predicted(model, data.columns(CHOSEN))
        for name, chosen in (("later trainings", is_later), ("of new kinds", is_new)):
            if chosen.any():
                label = f"fit to {is_known.sum()}, on {chosen.sum()} {name}"
                yield scored(places, data, label, chosen)


def folds(kinds: np.ndarray, count: int = FOLDS) -> np.ndarray:
    """The fold of each training, (n,); a kind is in one fold."""
    names, codes = np.unique(kinds, return_inverse=True)
    order = np.random.RandomState(0).permutation(len(names))
    return order[codes] % count


def left_out(
    make: Callable[[], Model],
    names: Sequence[str],
    data: Data,
    is_named: bool = True,
    count: int = FOLDS,
) -> np.ndarray:
    """Predictions (n, 2) of models that are fitted to other kinds."""
    fold = folds(data.kinds, count)
    x = data.columns(names, is_named)
    found = np.zeros(x.shape[:2])
    for number in np.unique(fold):
        model = make()
        model.fit(*data.examples(names, fold != number))
        is_test = fold == number
        found[is_test] = predicted(model, x[is_test])
    return found


def predicted(model: Model, x: np.ndarray) -> np.ndarray:
    """log2 multipliers (n, 2) of features (n, 2, d)."""
    return np.stack([model.predict(x[:, seed]) for seed in range(x.shape[1])], 1)


def gains_at(places: np.ndarray, data: Data) -> np.ndarray:
    """Gains in percent at log2 multipliers (n, 2), means over seeds, (n,)."""
    fine, curves = refined(data.log_multipliers, data.gains)
    found = []
    for seed in range(places.shape[1]):
        rows = torch.tensor(curves[:, :, seed])
        at = torch.tensor(places[:, seed])
        gain = interpolated(at, torch.tensor(fine), rows)
        found.append(gain.numpy())
    return 100 * np.mean(found, 0)


def scored(
    places: np.ndarray, data: Data, label: str, chosen: np.ndarray | None = None
) -> Row:
    """The row of a model that predicts `places`, (n, 2).

    chosen: the counted trainings, (n,); None for all.
    """
    if chosen is None:
        chosen = np.ones(len(places), dtype=bool)
    gains = gains_at(places, data)
    return row_of(label, gains[chosen], data.steps[chosen], places[chosen])


def row_of(
    label: str, gains: np.ndarray, steps: np.ndarray, places: np.ndarray | None = None
) -> Row:
    """The row of gains in percent, (n,).

    steps: of the trainings, (n,). places: their log2 multipliers, if there are any.
    """
    row: Row = {"model": label}
    everything = np.ones(len(gains), dtype=bool)
    is_short, is_long = steps <= SHORT, steps >= LONG
    parts = {"all": everything, f"<= {SHORT}": is_short, f">= {LONG}": is_long}
    for name, part in parts.items():
        own = gains[part]
        count = max(len(own), 1)
        row[name] = float(own.sum() / count)
        row[f"{name} error"] = float(own.std() / count**0.5) if len(own) else 0.0
    for limit in (LITTLE, MUCH):
        row[f"worse by {limit} %"] = 100 * float((gains < -limit).mean())
    row["5th percentile"] = float(np.percentile(gains, 5))
    if places is not None:
        row["mean |log2|"] = float(np.abs(places).mean())
    return row


def formatted(row: Row) -> dict[str, str]:
    """Cells of the printed table."""
    cells = {}
    for name, value in row.items():
        if name.endswith(" error"):
            continue
        cells[name] = value if isinstance(value, str) else f"{value:.1f}"
        if f"{name} error" in row:
            cells[name] = f"{value:.1f} +- {row[f'{name} error']:.1f}"
    size = row.get("mean |log2|")
    cells["mean |log2|"] = "" if size is None else f"{size:.2f}"
    return cells


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
