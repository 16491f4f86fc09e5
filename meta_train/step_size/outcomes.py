"""The measured outcomes of random trainings as arrays, and gains at any step size."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from harness.files import read_lines
from meta_train.step_size.trainings import Training

FLOOR = 2e-3  # share of the first loss below which differences do not count
MAX_LOG_LOSS = 1.0  # largest counted log of a loss over the first one
MAX_GAIN = 1.0  # largest counted gain
FINE = 0.25  # distance of the log multipliers of `refined`
UNCHANGED = "unchanged"  # the variant that others are compared with


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of n trainings at m multipliers and 2 seeds.

    trainings: their descriptions. log_multipliers: (m,), base 2. gains: over
    multiplier 1, see `gains_over`, (n, m, 2). files: number of the first file with
    each, (n,).
    """

    trainings: list[Training]
    log_multipliers: np.ndarray
    gains: np.ndarray
    files: np.ndarray

    @cached_property
    def kinds(self) -> np.ndarray:
        """(n,)"""
        return np.array([training.kind for training in self.trainings])

    @cached_property
    def steps(self) -> np.ndarray:
        """(n,)"""
        return np.array([training.steps for training in self.trainings])


def read_outcomes(folder: Path) -> Outcomes:
    """The files outcomes*.jsonl* of a folder. Raises ValueError if there are none."""
    paths = sorted(folder.glob("outcomes*.jsonl*"))
    records: dict[int, dict[str, Any]] = {}
    files: dict[int, int] = {}
    for number, path in enumerate(paths):
        for record in read_lines([path]):
            seed = record["seed"]
            records[seed] = record
            files.setdefault(seed, number)
    if not records:
        raise ValueError(f"outcomes: expected lines of trainings in {paths}; got none")
    trainings, gains = [], []
    fields = Training.__dataclass_fields__
    log_multipliers = np.log2(next(iter(records.values()))["multipliers"])
    middle = int(np.argmin(np.abs(log_multipliers)))
    for seed in sorted(records):
        record = records[seed]
        own = {name: record[name] for name in fields}
        trainings.append(Training(**own))
        gains.append(gains_over(record, middle))
    numbers = np.array([files[training.seed] for training in trainings])
    return Outcomes(trainings, log_multipliers, np.stack(gains), numbers)


def log_losses(record: Mapping[str, Any]) -> np.ndarray:
    """Logs of losses (m, 2) with a floor and a ceiling relative to the first, (2,)."""
    first = np.array(record["first"], dtype=float)  # None becomes nan
    validation = np.array(record["validation"], dtype=float)
    first = np.nan_to_num(np.abs(first), nan=1.0)
    first = first + 1e-12
    ratio = np.nan_to_num(validation, nan=np.inf) / first
    logs = np.log(ratio.clip(0) + FLOOR)
    return np.minimum(logs, MAX_LOG_LOSS) + np.log(first)


def gains_over(record: Mapping[str, Any], reference: int) -> np.ndarray:
    """Log loss of a reference - log loss, (m, 2), clipped to +-`MAX_GAIN`."""
    logs = log_losses(record)
    return (logs[reference] - logs).clip(-MAX_GAIN, MAX_GAIN)


def gains_of(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Gains over the variant `UNCHANGED` by variant, for each seed, (2,)."""
    names = record["variants"]
    gains = gains_over(record, names.index(UNCHANGED))
    return dict(zip(names, gains, strict=True))


def refined(
    log_multipliers: np.ndarray, gains: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log multipliers at distances of `FINE`, (f,), and gains (n, m, ...) there.

    Interpolated by monotone cubics (Fritsch and Butland 1984): straight lines are too
    low on both sides of a peak.
    """
    low, high = log_multipliers[0], log_multipliers[-1]
    count = round((high - low) / FINE) + 1
    fine = np.linspace(low, high, count)
    curves = PchipInterpolator(log_multipliers, gains, axis=1)
    return fine, curves(fine)


def interpolated(x: Tensor, log_multipliers: Tensor, rows: Tensor) -> Tensor:
    """Values of piecewise linear rows (n, m) at x (n,), which may need a gradient."""
    low = log_multipliers[0]
    step = log_multipliers[1] - low
    last = len(log_multipliers) - 1
    place = (x - low) / step
    place = place.clamp(0, last)
    left = place.detach().long()
    left = left.clamp(max=last - 1)
    share = place - left
    n = torch.arange(len(x), device=x.device)
    return (1 - share) * rows[n, left] + share * rows[n, left + 1]
