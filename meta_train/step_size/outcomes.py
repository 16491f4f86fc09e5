"""The measured outcomes of random trainings as arrays, and gains at any step size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from harness.json_lines import read_lines
from meta_train.step_size.trainings import Training

FLOOR = 2e-3  # share of the first loss below which differences do not count
MAX_LOG_LOSS = 1.0  # largest counted log of a loss over the first one
MAX_GAIN = 1.0  # largest counted gain
FINE = 0.25  # distance of the log multipliers of `refined`
UNCHANGED = "unchanged"  # the variant that others are compared with


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of n trainings at m multipliers and 2 seeds.

    trainings: their descriptions. log_multipliers: (m,), base 2. losses: logs of
    validation losses, (n, m, 2). files: number of the first file with each, (n,).
    """

    trainings: list[Training]
    log_multipliers: np.ndarray
    losses: np.ndarray
    files: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """log loss at multiplier 1 - log loss, (n, m, 2), clipped to +-`MAX_GAIN`."""
        distances = np.abs(self.log_multipliers)
        middle = int(np.argmin(distances))
        gains = self.losses[:, [middle]] - self.losses
        return gains.clip(-MAX_GAIN, MAX_GAIN)


def read_outcomes(paths: Sequence[Path]) -> Outcomes:
    """Raises ValueError if there are none."""
    records: dict[int, dict[str, Any]] = {}
    files: dict[int, int] = {}
    for number, path in enumerate(paths):
        for record in read_lines([path]):
            seed = record["seed"]
            records[seed] = record
            files.setdefault(seed, number)
    if not records:
        raise ValueError(f"outcomes: expected lines of trainings in {paths}; got none")
    trainings, losses = [], []
    fields = Training.__dataclass_fields__
    for seed in sorted(records):
        record = records[seed]
        own = {name: record[name] for name in fields}
        trainings.append(Training(**own))
        losses.append(log_losses(record))
    multipliers = next(iter(records.values()))["multipliers"]
    return Outcomes(
        trainings,
        np.log2(multipliers),
        np.stack(losses),
        np.array([files[training.seed] for training in trainings]),
    )


def log_losses(record: Mapping[str, Any]) -> np.ndarray:
    """Logs of losses (m, 2) with a floor and a ceiling relative to the first, (2,)."""
    first = np.array(record["first"], dtype=float)  # None becomes nan
    validation = np.array(record["validation"], dtype=float)
    first = np.nan_to_num(np.abs(first), nan=1.0)
    first = first + 1e-12
    ratio = np.nan_to_num(validation, nan=np.inf) / first
    logs = np.log(ratio.clip(0) + FLOOR)
    return np.minimum(logs, MAX_LOG_LOSS) + np.log(first)


def gains_of(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Gains over the variant `UNCHANGED` by variant, for each seed, percent, (2,)."""
    logs = log_losses(record)
    unchanged = logs[record["variants"].index(UNCHANGED)]
    found = {}
    for name, row in zip(record["variants"], logs, strict=True):
        found[name] = 100 * (unchanged - row).clip(-MAX_GAIN, MAX_GAIN)
    return found


def refined(
    log_multipliers: np.ndarray, gains: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log multipliers at distances of `FINE`, (f,), and gains (n, m, ...) there.

    Interpolated by monotone cubics (Fritsch and Butland 1984): straight lines are too
    low on both sides of a peak.
    """
    low, high = log_multipliers[0], log_multipliers[-1]
    fine = np.linspace(low, high, round((high - low) / FINE) + 1)
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
