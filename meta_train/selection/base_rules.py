"""Compares learned optimizers by whole training runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from harness.files import make_folder
from meta_train.comparison.inner_training import Record, Run
from meta_train.comparison.optimizers import reads_connections
from meta_train.comparison.runs import execute
from meta_train.problems import load_problem
from ngopt.pretrained import LearnedOptimizer, save_pretrained, weights_hash
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap

# Largest change of the score by one problem: a factor e^.5 = 1.65 in loss.
LARGEST_GAIN = 0.5


def whole_runs(
    variants: Mapping[str, Soap | LearnedOptimizer],
    problems: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    processes: int = 1,
    phase: str = "tuning",
) -> dict[str, list[Record]]:
    """Records by variant: whole training runs of every problem with every seed.

    folder: of records, and of a weights file for each variant; finished runs there are
    not repeated. processes: runs at the same time. phase: see `Run`.
    """
    make_folder(folder)
    runs: list[Run] = []
    for name, rule in variants.items():
        path = folder / f"{name}.safetensors"
        save_pretrained(rule, path)
        digest, traced = weights_hash(rule), reads_connections(rule)
        for problem in problems:
            steps = load_problem(problem).steps
            run = Run(problem, str(path), None, digest, 0, steps, phase, traced=traced)
            runs += [replace(run, seed=seed) for seed in seeds]
    with tqdm(total=len(runs), unit="run") as bar:
        records = iter(execute(runs, folder / "records", processes, bar))
    count = len(problems) * len(seeds)
    return {name: list(islice(records, count)) for name in variants}


def base_rule(changes: Mapping[str, Any]) -> Soap:
    """The base rule alone, with changes of `SoapConfig()`."""
    return Soap(replace(SoapConfig(), **changes))


def gains(records: Sequence[Record], references: Sequence[Record]) -> dict[str, float]:
    """By problem: mean over seeds of log(loss of the reference / validation loss).

    Each is clipped to +- LARGEST_GAIN. A run that diverged counts -LARGEST_GAIN.
    """
    clipped: dict[str, list[float]] = {}
    for record, reference in zip(records, references, strict=True):
        gain = _log_loss(reference) - _log_loss(record)
        gain = min(max(gain, -LARGEST_GAIN), LARGEST_GAIN)
        clipped.setdefault(record["run"]["problem"], []).append(gain)
    return {problem: fmean(values) for problem, values in clipped.items()}


def _log_loss(record: Record) -> float:
    loss = record["validation"]["loss"]
    return log(loss) if loss is not None and isfinite(loss) and loss > 0 else log(1e9)
