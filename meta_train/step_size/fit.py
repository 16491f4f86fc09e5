"""Fits the predictor of the step size, and compares it with others on trainings that
are left out.

`python -m meta_train.step_size.fit --folder runs/step_size` reads all files
`outcomes*.jsonl` there, also compressed ones (.gz). It writes
`learned-step.safetensors`, prints a table and writes it to `compare.json`. Features are
cached in `features.jsonl`. Gains are 100 x the fall of log validation loss against the
base rule, means over two seeds; their errors are standard errors over trainings.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import cli
from harness.files import write_json
from harness.tables import text_table
from meta_train.step_size.models import Settings, fitted, utility
from meta_train.step_size.outcomes import GROUPS, Data, gains_at, read_data
from ngopt.learned_step.predictor import (
    MAX_LOG2,
    NEGLIGIBLE,
    LearnedStep,
    StepPredictor,
)
from ngopt.pretrained import save_pretrained
from ngopt.soap.soap import Soap

FOLDS = 10
SHORT, LONG = 400, 1000  # steps: at most, at least
LIMITS = 2, 5, 15  # percent
REACHES = 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, math.inf

Row = dict[str, float | str]


@dataclass(frozen=True)
class Config:
    """Options of the command line. folder: of the outcomes."""

    folder: str = "runs/step_size"


def main(config: Config) -> None:
    folder = Path(config.folder)
    data = read_data(folder)
    print(f"{len(data.steps)} trainings of {len(set(data.kinds))} kinds", flush=True)
    chosen = replace(Settings(), reach=fitted_reach(data, Settings()))
    stage = {"program": "meta_train.step_size.fit", "trainings": len(data.steps)}
    multiplier = LearnedStep(fitted(data, chosen), {"stages": [stage]})
    path = folder / "learned-step.safetensors"
    save_pretrained(Soap(multiplier=multiplier), path)
    print(f"written: '{path}'", flush=True)
    rows = compared(data, chosen)
    print(text_table([formatted(row) for row in rows]))
    write_json(folder / "compare.json", {"trainings": len(data.steps), "rows": rows})


def compared(data: Data, chosen: Settings) -> list[Row]:
    """A row for each model, with kinds left out; then for each group of families."""
    rows = [row_of("the rule", np.zeros(len(data.steps)), data.steps)]
    for label, own in {
        "as written": chosen,
        "any distance": replace(chosen, reach=math.inf),
        "no caution": replace(chosen, caution=(0.0, 0.0)),
        "twice the caution": replace(chosen, caution=(2.0, 2.0)),
        "one network": replace(chosen, members=1),
    }.items():
        gains = left_out(data, own, folds(data.kinds))
        rows.append(row_of(label, gains, data.steps))
    gains = left_out(data, chosen, data.groups)
    for name in GROUPS:
        part = data.groups == name
        if part.any():
            rows.append(row_of(f"left out: {name}", gains[part], data.steps[part]))
    return rows


def fitted_reach(data: Data, settings: Settings) -> float:
    """The reach with the best utility for kinds and for groups that are left out."""
    totals = np.zeros(len(REACHES))
    for parts in (folds(data.kinds), data.groups):
        for part in np.unique(parts):
            predictor = fitted(data.at(parts != part), settings)
            for i, reach in enumerate(REACHES):
                near = predictor._replace(reach=torch.tensor(reach))
                gains = predicted_gains(near, data.at(parts == part))
                totals[i] += float(utility(torch.tensor(gains)).sum())
    print(f"utility by reach: {dict(zip(REACHES, totals.round(), strict=True))}")
    return REACHES[int(totals.argmax())]


def left_out(data: Data, settings: Settings, parts: np.ndarray) -> np.ndarray:
    """Gains (n,) in percent, by predictors that are fitted to the other parts.

    parts: that of each training, (n,).
    """
    gains = np.zeros(len(parts))
    for part in np.unique(parts):
        predictor = fitted(data.at(parts != part), settings)
        gains[parts == part] = predicted_gains(predictor, data.at(parts == part))
    return gains


def predicted_gains(predictor: StepPredictor, data: Data) -> np.ndarray:
    """Gains (n,) in percent with named parameters, means over seeds."""
    gains = []
    for seed in range(data.x.shape[2]):
        predicted = applied(predictor.predict(torch.tensor(data.x[:, 0, seed]).float()))
        measured = torch.tensor(data.gains[:, :, seed]).float()
        gains.append(gains_at(predicted, measured).numpy())
    return 100 * np.mean(gains, 0)


def applied(predicted: Tensor) -> Tensor:
    """The predictions (n, 2) within the limits of factors."""
    log_factor, slope = predicted.clamp(-MAX_LOG2, MAX_LOG2).unbind(1)
    slope = slope.abs().minimum(MAX_LOG2 - log_factor.abs()) * slope.sign()
    both = torch.stack((log_factor, slope), 1)
    is_negligible = both.abs().sum(1, keepdim=True) <= NEGLIGIBLE
    return torch.where(is_negligible, 0.0, both)


def folds(kinds: np.ndarray, count: int = FOLDS) -> np.ndarray:
    """The fold of each training, (n,); a kind is in one fold."""
    names, codes = np.unique(kinds, return_inverse=True)
    order = np.random.RandomState(0).permutation(len(names))
    return order[codes] % count


def row_of(label: str, gains: np.ndarray, steps: np.ndarray) -> Row:
    """The row of gains in percent, (n,). steps: of the trainings, (n,)."""
    row: Row = {"model": label, "trainings": len(gains)}
    everything = np.ones(len(gains), dtype=bool)
    is_short, is_long = steps <= SHORT, steps >= LONG
    parts = {"all": everything, f"<= {SHORT}": is_short, f">= {LONG}": is_long}
    for name, part in parts.items():
        own = gains[part]
        count = max(len(own), 1)
        row[name] = float(own.sum() / count)
        row[f"{name} error"] = float(own.std() / count**0.5) if len(own) else 0.0
    for limit in LIMITS:
        row[f"worse by {limit} %"] = 100 * float((gains < -limit).mean())
    row["changed"] = 100 * float((gains != 0).mean())
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
    return cells


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
