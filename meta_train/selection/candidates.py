"""Settings of the base rule as candidates: each is a weights file, scored over whole
trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from harness.files import make_folder
from meta_train.comparison.runs import Record, Run, execute, runs_of
from ngopt.base.config import SoapConfig
from ngopt.base.soap import Soap
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

# One problem moves the score by at most this, so that none decides alone:
# a factor e^.5 = 1.65 in loss.
MOST = 0.5


@dataclass(frozen=True)
class Setting:
    """What whole runs are made with.

    problems, seeds: every pair of them is a run. folder: of weights files and records;
    a run that
        is there already is not made again. processes: runs at the same time.
    """

    problems: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    processes: int = 1

    def runs(self, name: str, changes: Mapping[str, Any]) -> list[Run]:
        """The runs of a candidate; writes its weights file."""
        learned = LearnedOptimizer(base=Soap(replace(SoapConfig(), **changes)))
        make_folder(self.folder)
        path = self.folder / f"{name}.safetensors"
        return runs_of(learned, path, self.problems, self.seeds, "tuning")

    def measure(
        self, candidates: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, list[Record]]:
        """The records of candidates, by name; each is a set of changes of
        `SoapConfig()`."""
        runs = {name: self.runs(name, changes) for name, changes in candidates.items()}
        flat = [run for some in runs.values() for run in some]
        with tqdm(total=len(flat), unit="run") as bar:
            records = iter(execute(flat, self.folder / "records", self.processes, bar))
        return {name: [next(records) for _ in some] for name, some in runs.items()}


def gains(records: Sequence[Record], references: Sequence[Record]) -> dict[str, float]:
    """By problem: mean over seeds of log(loss of the reference / loss), validation,
    within +- MOST.

    A run that diverged counts -MOST.
    """
    found: dict[str, list[float]] = {}
    for record, reference in zip(records, references, strict=True):
        gain = _log_loss(reference) - _log_loss(record)
        found.setdefault(record["run"]["problem"], []).append(
            min(max(gain, -MOST), MOST)
        )
    return {problem: fmean(values) for problem, values in found.items()}


def _log_loss(record: Record) -> float:
    loss = record["validation"]["loss"]
    return log(loss) if loss is not None and isfinite(loss) and loss > 0 else log(1e9)
