"""Compares settings of the base rule by the validation loss of whole trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from harness.files import make_folder
from meta_train.comparison.inner_training import Record
from meta_train.comparison.runs import execute, plan_runs
from ngopt.base.config import SoapConfig
from ngopt.base.soap import Soap
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

# Largest change of the score by one problem: a factor e^.5 = 1.65 in loss.
LARGEST_GAIN = 0.5


@dataclass(frozen=True)
class WholeTrainings:
    """Whole trainings of every problem with every seed.

    folder: of weights files and records; finished runs there are not repeated.
    processes: runs at the same time.
    """

    problems: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    processes: int = 1

    def records(
        self, variants: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, list[Record]]:
        """The records of each variant, by name.

        variants: changes of `SoapConfig()` by name, each of which is written as a
        weights file.
        """
        make_folder(self.folder)
        runs, names = [], []
        for name, changes in variants.items():
            learned = LearnedOptimizer(base=Soap(replace(SoapConfig(), **changes)))
            path = self.folder / f"{name}.safetensors"
            own = plan_runs(learned, path, self.problems, self.seeds, "tuning")
            runs += own
            names += [name] * len(own)
        with tqdm(total=len(runs), unit="run") as bar:
            records = execute(runs, self.folder / "records", self.processes, bar)
        found: dict[str, list[Record]] = {}
        for name, record in zip(names, records, strict=True):
            found.setdefault(name, []).append(record)
        return found


def gains(records: Sequence[Record], references: Sequence[Record]) -> dict[str, float]:
    """By problem: mean over seeds of log(loss of the reference / validation loss).

    Each is clipped to +- LARGEST_GAIN. A run that diverged counts -LARGEST_GAIN.
    """
    found: dict[str, list[float]] = {}
    for record, reference in zip(records, references, strict=True):
        gain = _log_loss(reference) - _log_loss(record)
        clipped = min(max(gain, -LARGEST_GAIN), LARGEST_GAIN)
        found.setdefault(record["run"]["problem"], []).append(clipped)
    return {problem: fmean(values) for problem, values in found.items()}


def _log_loss(record: Record) -> float:
    loss = record["validation"]["loss"]
    return log(loss) if loss is not None and isfinite(loss) and loss > 0 else log(1e9)
