"""Fits the predictor of the step size, and compares it with others on trainings that
are left out.

`python -m meta_train.step_size.fit --folder runs/step_size` reads all files
`outcomes*.jsonl` there, also compressed ones (.gz). It writes
`learned-step.safetensors`, prints a table and writes it to `compare.json`. Features are
cached in `features.jsonl`. Gains are 100 x the fall of log validation loss against the
base rule, means over two seeds; their errors are standard errors over trainings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

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
    splits = folds(data.kinds), data.groups
    left_out = [fitted_without(data, Settings(), parts) for parts in splits]
    chosen = replace(Settings(), reach=best_reach(data, left_out))
    stage = {"program": "meta_train.step_size.fit", "trainings": len(data.steps)}
    multiplier = LearnedStep(fitted(data, chosen), {"stages": [stage]})
    path = folder / "learned-step.safetensors"
    save_pretrained(Soap(multiplier=multiplier), path)
    print(f"written: '{path}'", flush=True)
    rows = compared(data, *(x.changed(reach=chosen.reach) for x in left_out))
    print(text_table([formatted(row) for row in rows]))
    write_json(folder / "compare.json", {"trainings": len(data.steps), "rows": rows})


class LeftOut(NamedTuple):
    """Predictors that are fitted without a part of the trainings each.

    parts: the part of each training, its predictor's number, (n,).
    """

    parts: np.ndarray
    predictors: list[StepPredictor]

    def changed(self, **fields: Any) -> "LeftOut":
        """With other values of fields that are not fitted."""
        tensors = {key: torch.tensor(value) for key, value in fields.items()}
        return self._replace(
            predictors=[x._replace(**tensors) for x in self.predictors]
        )

    def gains(self, data: Data) -> np.ndarray:
        """Gains (n,) in percent, each by the predictor that was fitted without it."""
        gains = np.zeros(len(self.parts))
        for number, predictor in enumerate(self.predictors):
            is_left_out = self.parts == number
            gains[is_left_out] = predicted_gains(predictor, data.at(is_left_out))
        return gains


def fitted_without(data: Data, settings: Settings, parts: np.ndarray) -> LeftOut:
    """parts: names or numbers, (n,)."""
    names, numbers = np.unique(parts, return_inverse=True)
    chosen = [data.at(numbers != number) for number in range(len(names))]
    return LeftOut(numbers, [fitted(others, settings) for others in chosen])


def compared(data: Data, of_kinds: LeftOut, of_groups: LeftOut) -> list[Row]:
    """A row for each model, with kinds left out; then for each group of families."""
    one = fitted_without(data, replace(Settings(), members=1), of_kinds.parts)
    rows = [row_of("the rule", np.zeros(len(data.steps)), data.steps)]
    for label, predictors in {
        "as written": of_kinds,
        "any distance": of_kinds.changed(reach=math.inf),
        "no caution": of_kinds.changed(caution=(0.0, 0.0)),
        "twice the caution": of_kinds.changed(caution=(2.0, 2.0)),
        "one network": one.changed(reach=float(of_kinds.predictors[0].reach)),
    }.items():
        rows.append(row_of(label, predictors.gains(data), data.steps))
    gains = of_groups.gains(data)
    for name in GROUPS:
        part = data.groups == name
        if part.any():
            rows.append(row_of(f"left out: {name}", gains[part], data.steps[part]))
    return rows


def best_reach(data: Data, left_out: Sequence[LeftOut]) -> float:
    """The reach with the best utility for all trainings that are left out."""
    totals = []
    for reach in REACHES:
        gains = [x.changed(reach=reach).gains(data) for x in left_out]
        totals.append(float(utility(torch.tensor(np.stack(gains))).sum()))
    print(f"utility by reach: {dict(zip(REACHES, map(round, totals), strict=True))}")
    return REACHES[int(np.argmax(totals))]


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
    is_short, is_long = steps <= SHORT, steps >= LONG
    parts = {"all": steps > 0, f"<= {SHORT}": is_short, f">= {LONG}": is_long}
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
