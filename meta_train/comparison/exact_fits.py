"""Compares final training losses of exact fits:
`python -m meta_train.comparison.exact_fits`.

The default trains with `total_steps`, and plain: without it, the weights as they are at
the end, and averaged. Adam has the best of eleven learning rates and two betas by the
mean over seeds for each problem and horizon, a warm-up, and a line to zero. L-BFGS has
a line search and as many iterations. Losses are natural logarithms between -20 and 20.
Writes `exact_fits.json`, from which the same command resumes, and `exact_fits.md`. If
the default's constants have changed, it alone is trained again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp, isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor
from torch.optim import LBFGS
from tqdm import tqdm

from harness import cli
from harness.files import make_folder, read_json, write_json
from harness.settings import check_counts
from harness.tables import markdown_table, text_table
from meta_train.comparison.stacked_adam import Settings, train_copies
from meta_train.problems import Problem, load_problem, problem_names
from ngopt import NGOptimizer, load_pretrained
from ngopt.pretrained import weights_hash
from ngopt.race.training import TrainingLoop

LOWEST = -20.0  # log losses below it are equal to float32
LRS = tuple(1e-4 * 2**k for k in range(11))
BETA1S = 0.9, 0.8
EVALUATIONS = 25  # most per iteration of L-BFGS, as in its line search
NEAR = 1.0  # log loss of plain training above Adam's

Record = dict[str, Any]
"""A finished cell: its key, seeds, the default's weights, results by seed."""


@dataclass(frozen=True)
class Config:
    """What is trained."""

    problems: tuple[str, ...] = ("exact",)
    """Names of problems or of lists of them; each with one batch for all steps."""
    horizons: tuple[int, ...] = (100, 300, 1000)
    """Steps of a training."""
    seeds: int = 3
    """Trainings per problem, horizon and optimizer, with seeds from 0."""
    ours: bool = True
    """Train the default too; without it the baselines alone."""
    renew: bool = False
    """Train the default again, as after a change of its code."""
    folder: str = "results/exact_fits"

    def __post_init__(self) -> None:
        check_counts(self, "seeds")


def log_loss(loss: float) -> float:
    """Between -20 and 20, which also stands for losses that are not finite."""
    if not isfinite(loss):
        return -LOWEST
    return round(min(log(max(loss, exp(LOWEST))), -LOWEST), 3)


def adam(problem: Any, horizon: int, seeds: int) -> Record:
    """grid: mean log losses of all learning rates, for one beta1 after the other."""
    settings = [Settings(lr, beta1) for beta1, lr in product(BETA1S, LRS)]
    runs = []
    for seed in range(seeds):
        losses = train_copies(problem, seed, settings, horizon)
        runs.append([log_loss(loss) for loss in losses.tolist()])
    grid = [fmean(column) for column in zip(*runs, strict=True)]
    best = grid.index(min(grid))
    losses = [run[best] for run in runs]
    means = [round(mean, 2) for mean in grid]
    return {"log_losses": losses, **settings[best]._asdict(), "grid": means}


def lbfgs(problem: Problem, horizon: int, seeds: int) -> Record:
    """L-BFGS with strong Wolfe conditions, until no step is possible."""
    losses = []
    for seed in range(seeds):
        model, batch = problem.init(seed), problem.batch(seed, 0)
        optimizer = LBFGS(
            model.parameters(),
            max_iter=horizon,
            max_eval=EVALUATIONS * horizon,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure(model=model, batch=batch, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        losses.append(log_loss(problem.loss(model, batch).item()))
    return {"log_losses": losses}


def scheduled(problem: Problem, horizon: int, seeds: int) -> Record:
    """The default with total_steps."""
    runs = [_default(problem, horizon, seed, horizon) for seed in range(seeds)]
    return {"log_losses": [loss for loss, _ in runs]}


def plain(problem: Problem, horizon: int, seeds: int) -> Record:
    """The default without total_steps; averaged: log losses of averaged weights."""
    runs = [_default(problem, horizon, seed, None) for seed in range(seeds)]
    losses, averaged = map(list, zip(*runs, strict=True))
    return {"log_losses": losses, "averaged": averaged}


def _default(
    problem: Problem, horizon: int, seed: int, total_steps: int | None
) -> tuple[float, float]:
    """Final log losses: of the weights, and of their average."""
    model, batch = problem.init(seed), problem.batch(seed, 0)
    optimizer = NGOptimizer(model.named_parameters(), total_steps=total_steps)
    loop = TrainingLoop(model, optimizer, None)
    for _ in range(horizon):
        loop.step(problem.loss, batch)
    loss = problem.loss(model, batch).item()
    with optimizer.averaged():
        return log_loss(loss), log_loss(problem.loss(model, batch).item())


BASELINES: dict[str, Callable[[Any, int, int], Record]] = {
    "adam": adam,
    "l-bfgs": lbfgs,
}
OURS = {"total_steps": scheduled, "plain": plain}


def train_all(config: Config) -> list[Record]:
    """The records of all cells; stored ones are read, others are made and stored."""
    folder = Path(config.folder)
    make_folder(folder)
    path = folder / "exact_fits.json"
    stored = read_json(path, "results") if path.exists() else []
    records = {_key(record): record for record in stored}
    weights = weights_hash(load_pretrained())
    optimizers = {**BASELINES, **(OURS if config.ours else {})}
    names = problem_names(config.problems)
    cells = list(product(names, config.horizons, optimizers))
    bar = tqdm(cells, unit="cell")
    for cell in bar:
        name, horizon, optimizer = cell
        is_ours = optimizer in OURS
        given = {"seeds": config.seeds, "weights": weights if is_ours else None}
        record = records.get(cell, {})
        is_current = all(record.get(key) == value for key, value in given.items())
        if is_current and not (is_ours and config.renew):
            continue
        bar.set_description(f"{name} {horizon} {optimizer}")
        result = optimizers[optimizer](load_problem(name), horizon, config.seeds)
        key = {"problem": name, "horizon": horizon, "optimizer": optimizer}
        records[cell] = {**key, **given, **result}
        write_json(path, list(records.values()))
    return [records[cell] for cell in cells]


def _key(record: Record) -> tuple[str, int, str]:
    return record["problem"], record["horizon"], record["optimizer"]


def table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Mean log losses, a row for each problem and horizon."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records:
        name, horizon, optimizer = _key(record)
        row = rows.setdefault((name, horizon), {"problem": name, "steps": horizon})
        row[optimizer] = fmean(record["log_losses"])
        if optimizer == "plain":
            row["averaged"] = fmean(record["averaged"])
        if optimizer == "adam":
            row["lr"], row["beta1"] = record["lr"], record["beta1"]
    for row in rows.values():
        if "total_steps" in row:
            row["excess"] = row["total_steps"] - row["adam"]
    return list(rows.values())


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How the default compares with the tuned Adam, in a sentence."""
    if "excess" not in rows[0]:
        return f"{len(rows)} cells of the baselines."
    level = fmean(row["excess"] <= 0 for row in rows)
    worst = max(rows, key=lambda row: row["excess"])
    near = fmean(row["plain"] <= row["adam"] + NEAR for row in rows)
    return (
        f"{len(rows)} cells: with total_steps {level:.0%} at or below the tuned Adam, "
        f"the largest excess {worst['excess']:+.2f} ({worst['problem']}, "
        f"{worst['steps']} steps); plain {near:.0%} at most {NEAR:g} above it."
    )


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(config: Config) -> None:
    rows = table(train_all(config))
    cells = [{key: _cell(value) for key, value in row.items()} for row in rows]
    print(f"{text_table(cells)}\n\n{summary(rows)}")
    path = Path(config.folder, "exact_fits.md")
    path.write_text(f"{summary(rows)}\n\n{markdown_table(cells)}\n")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
