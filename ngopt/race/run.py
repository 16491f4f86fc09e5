"""A whole race: tunes learning rates, trains at the best of each, writes the report."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib  # noqa: F401  a missing one is found before hours of training
import torch
from tqdm import tqdm

from ngopt.race.optimizers import CONTESTANTS, Contestant, tuned
from ngopt.race.report import Result, table, write_report
from ngopt.race.training import Problem, Run, load_problem, train

TUNING_SEED = 1_000_000  # a seed of its own
LOG_PAUSE = 60.0  # seconds between lines of progress, if stderr is no terminal


@dataclass(frozen=True)
class Settings:
    """optimizers: names in `CONTESTANTS`. folder: of the report. as_json: prints JSON.

    Raises ValueError for an unknown optimizer and for counts below 1.
    """

    optimizers: tuple[str, ...]
    steps: int
    seeds: int
    device: torch.device
    folder: Path
    as_json: bool = False

    def __post_init__(self) -> None:
        for name in self.optimizers:
            if name not in CONTESTANTS:
                known = ", ".join(CONTESTANTS)
                raise ValueError(f"race: expected optimizers of {known}; got '{name}'.")
        for name in ("steps", "seeds"):
            if getattr(self, name) < 1:
                got = getattr(self, name)
                raise ValueError(f"race: expected {name} of 1 or more; got {got}.")


def run(path: str, settings: Settings) -> list[Result]:
    """Runs the race and prints its table, or JSON."""
    contestants = [CONTESTANTS[name] for name in settings.optimizers]
    for contestant in contestants:
        contestant.check()
    problem = load_problem(path)
    count = sum(len(one.rates) + settings.seeds for one in contestants)
    begin = time.perf_counter()
    results = []
    pause = 0.1 if sys.stderr.isatty() else LOG_PAUSE
    total = count * settings.steps
    with tqdm(
        total=total, unit="step", mininterval=pause, maxinterval=max(pause, 10.0)
    ) as bar:
        for contestant in contestants:
            results.append(_result(problem, contestant, settings, bar))
    title = f"{problem.name}, {settings.steps} steps, {settings.seeds} seed(s)"
    write_report(settings.folder, title, results)
    if settings.as_json:
        print(json.dumps({one.optimizer: one.score for one in results}))
    else:
        minutes = (time.perf_counter() - begin) / 60
        print(f"{title}, {minutes:.1f} minutes\n\n{table(results)}\n")
        print(f"Report: {settings.folder / 'race.html'}")
    return results


def _result(
    problem: Problem, contestant: Contestant, settings: Settings, bar: tqdm
) -> Result:
    """The result of one optimizer, at the rate with the lowest loss on another seed."""

    def on_step(loss: float) -> None:
        bar.update()
        bar.set_postfix(loss=f"{loss:.3g}", refresh=False)

    def trained(lr: float | None, seed: int) -> Run:
        rate = "" if lr is None else f" lr {lr:g}"
        bar.set_description(f"{contestant.name}{rate}", refresh=False)
        steps = settings.steps
        return train(problem, contestant, lr, seed, steps, settings.device, on_step)

    def score(rate: float) -> float:
        if rate not in contestant.rates:
            bar.total += settings.steps
        return trained(rate, TUNING_SEED).score

    tried: list[float] = []
    lr, at_edge = None, False
    if contestant.rates:
        tried, lr, at_edge = tuned(contestant.rates, score)
    runs = [trained(lr, seed) for seed in range(settings.seeds)]
    return Result(contestant.name, lr, tried, runs, at_edge)
