"""Compares final training losses of exact fits:
`python -m meta_train.comparison.exact_fits`.

The default trains with `total_steps`, and plain: without it, its weights raw and
averaged at the end. Adam has a warm-up, a line to zero, and the best of eleven learning
rates and two betas for each problem and horizon. L-BFGS has a line search. Losses are
means over seeds of natural logarithms between -20 and 20. Writes `exact_fits.md`, and
`exact_fits.json`, from which the same command resumes. When the default's constants
have changed, it alone is trained again.
"""

import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import exp, isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.optim import LBFGS
from tqdm import tqdm

from harness import cli
from harness.files import make_folder, read_json, write_json
from harness.settings import check_counts
from harness.tables import markdown_table, text_table
from meta_train.comparison.stacked_adam import train_copies
from meta_train.problems import load_problem, problem_names
from ngopt import NGOptimizer, load_pretrained
from ngopt.pretrained import weights_hash

LOWEST = -20.0  # lower log losses are equal to it
LRS = tuple(4e-4 * 2**k for k in range(11))
BETA1S = 0.9, 0.8
# No limit of evaluations, and no end before max_iter while the loss falls.
SEARCHING: dict[str, Any] = {
    "max_eval": sys.maxsize,
    "tolerance_grad": 0,
    "tolerance_change": 0,
    "line_search_fn": "strong_wolfe",
}
NEAR = 1.0  # log loss of plain training above Adam's

Result = dict[str, Any]
"""log_losses: by seed; further values of the optimizer."""


@dataclass(frozen=True)
class Config:
    """What is trained."""

    problems: tuple[str, ...] = ("exact",)
    """Names of problems with one batch for all steps, or of lists of them."""
    horizons: tuple[int, ...] = (100, 300, 1000)
    """Steps of a training."""
    seeds: int = 3
    """Trainings per problem, horizon and optimizer, with seeds from 0."""
    renew: bool = False
    """Train the default again, as after a change of its code."""
    folder: str = "results/exact_fits"

    def __post_init__(self) -> None:
        check_counts(self, "seeds")


def log_loss(loss: float) -> float:
    """Between -20 and 20, which also stands for a loss that is not finite."""
    if not isfinite(loss):
        return -LOWEST
    return round(min(log(max(loss, exp(LOWEST))), -LOWEST), 3)


def adam(problem: Any, steps: int, seeds: int) -> Result:
    """grid: means for all learning rates with the first beta1, then the second."""
    settings = [(lr, beta1) for beta1, lr in product(BETA1S, LRS)]
    runs = []
    for seed in range(seeds):
        losses = train_copies(problem, seed, settings, steps)[-1]
        runs.append([log_loss(loss) for loss in losses.tolist()])
    means = [fmean(column) for column in zip(*runs, strict=True)]
    best = means.index(min(means))
    lr, beta1 = settings[best]
    losses = [run[best] for run in runs]
    grid = [round(mean, 2) for mean in means]
    return {"log_losses": losses, "lr": lr, "beta1": beta1, "grid": grid}


def lbfgs(problem: Any, steps: int, seeds: int) -> Result:
    """L-BFGS with strong Wolfe conditions and as many iterations as steps."""
    losses = []
    for seed in range(seeds):
        model, batch = problem.init(seed), problem.batch(seed, 0)
        optimizer = LBFGS(model.parameters(), **SEARCHING, max_iter=steps)

        def closure(model=model, batch=batch):
            model.zero_grad()
            loss = problem.loss(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        losses.append(log_loss(closure().item()))
    return {"log_losses": losses}


def default(problem: Any, steps: int, seeds: int, scheduled: bool) -> Result:
    """scheduled: with total_steps. averaged: log losses of averaged weights."""
    result: Result = {"log_losses": [], "averaged": []}
    total_steps = steps if scheduled else None
    for seed in range(seeds):
        model, batch = problem.init(seed), problem.batch(seed, 0)
        optimizer = NGOptimizer(model.named_parameters(), total_steps=total_steps)
        for _ in range(steps):
            optimizer.zero_grad()
            problem.loss(model, batch).backward()
            optimizer.step()
        result["log_losses"].append(log_loss(problem.loss(model, batch).item()))
        with optimizer.averaged():
            loss = problem.loss(model, batch).item()
            result["averaged"].append(log_loss(loss))
    return result


BASELINES = {"adam": adam, "l-bfgs": lbfgs}
OURS = {
    "total_steps": partial(default, scheduled=True),
    "plain": partial(default, scheduled=False),
}


def train_all(config: Config) -> list[dict[str, Any]]:
    """Rows of the table. Stored results are read, others are made and stored."""
    path = Path(config.folder, "exact_fits.json")
    make_folder(path.parent)
    weights = weights_hash(load_pretrained())
    stored: dict[str, Any] = {"baselines": {}, "ours": {}, "weights": weights}
    if path.exists():
        stored = read_json(path, "results")
    if config.renew or stored["weights"] != weights:
        stored |= {"ours": {}, "weights": weights}
    optimizers = {**BASELINES, **OURS}
    cells = product(problem_names(config.problems), config.horizons, optimizers)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    bar = tqdm(list(cells), unit="cell")
    for problem, steps, name in bar:
        key = f"{problem} {steps} {name}"
        bar.set_description(key)
        results = stored["ours" if name in OURS else "baselines"]
        if key not in results or len(results[key]["log_losses"]) != config.seeds:
            train = optimizers[name]
            results[key] = train(load_problem(problem), steps, config.seeds)
            write_json(path, stored)
        result = results[key]
        row = rows.setdefault((problem, steps), {"problem": problem, "steps": steps})
        row[name] = fmean(result["log_losses"])
        if name == "adam":
            row |= {"lr": result["lr"], "beta1": result["beta1"]}
        if name == "plain":
            row["averaged"] = fmean(result["averaged"])
            row["excess"] = row["total_steps"] - row["adam"]
    return list(rows.values())


def summary(rows: list[dict[str, Any]]) -> str:
    """How the default compares with the tuned Adam, in a sentence."""
    level = fmean(row["excess"] <= 0 for row in rows)
    worst = max(rows, key=lambda row: row["excess"])
    near = fmean(row["plain"] <= row["adam"] + NEAR for row in rows)
    return (
        f"{len(rows)} cells: with total_steps {level:.0%} at or below the tuned Adam, "
        f"largest excess {worst['excess']:.2f} ({worst['problem']}, {worst['steps']} "
        f"steps); plain {near:.0%} at most {NEAR:g} above it."
    )


def run(config: Config) -> None:
    rows = train_all(config)
    cells = []
    for row in rows:
        cells.append({k: f"{x:.4g}" if k != "problem" else x for k, x in row.items()})
    print(f"{text_table(cells)}\n\n{summary(rows)}")
    path = Path(config.folder, "exact_fits.md")
    path.write_text(f"{summary(rows)}\n\n{markdown_table(cells)}\n")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
