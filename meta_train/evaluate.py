"""Compares optimizers: `python -m meta_train.evaluate --problem fm-16 --optimizer adam muon-cosine ff --seeds 5`.

Prints a table and writes into its folder: `results.json` (everything), `table.md`, `<problem>.png`
(curves), and `runs/`, one file for each finished run, from which the same command resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from meta_train import cli
from meta_train.optimizers import OPTIMIZERS, OptimizerSpec, load_optimizer
from meta_train.problems import load_problem
from meta_train.report import HEADER, Row, align, cells, markdown, mean_accuracies, notes, plot_curves, summarize
from meta_train.runs import Record, Run, execute, file_name, finite, write_json
from ngopt import list_pretrained

FIRST_TUNING_SEED = 1_000_000  # evaluation counts from 0, so the two never meet


@dataclass(frozen=True)
class Config:
    """Settings of a comparison."""

    problem: tuple[str, ...] = ("fm-16", "c10-32")
    """Names of problems, or module:factory."""
    optimizer: tuple[str, ...] = field(default_factory=lambda: (*OPTIMIZERS, *list_pretrained()))
    """Names of baselines or of bundled weights, or paths of weights files."""
    seeds: int = 5
    """Runs per problem and optimizer, with seeds from 0."""
    steps: int = 1000
    """Updates per run."""
    tuning_seeds: int = 1
    """Runs per learning rate of a baseline's grid, on seeds of their own."""
    folder: str = "runs/evaluate"
    processes: int = 1
    """Runs at the same time, with one thread each. Times per step mean little if they exceed the free cores."""
    curve_every: int = 50
    """Steps between points of the accuracy curves."""

    def __post_init__(self) -> None:
        for key in ("seeds", "steps", "tuning_seeds", "processes", "curve_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: expected 1 or more; got {getattr(self, key)}")
        if self.seeds > FIRST_TUNING_SEED:
            raise ValueError(f"seeds: expected at most {FIRST_TUNING_SEED}; got {self.seeds}")
        for key in ("problem", "optimizer"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key}: expected at least one name, each once; got {values}")


def evaluate(config: Config) -> list[Row]:
    """Tunes and runs every optimizer on every problem and writes the results; the rows of the table.

    Raises ValueError if a problem or an optimizer is unknown, before anything runs.
    """
    specs = [load_optimizer(name) for name in config.optimizer]
    for name in config.problem:
        load_problem(name)
    folder = Path(config.folder)
    pairs = list(product(config.problem, specs))
    tuning_runs = [run for problem, spec in pairs for run in plan_tuning(problem, spec, config)]
    with tqdm(total=len(tuning_runs) + len(pairs) * config.seeds, unit="run") as bar:
        run_all = partial(execute, folder=folder / "runs", processes=config.processes, bar=bar)
        tuning = run_all(tuning_runs)
        runs = []
        for problem, spec in pairs:
            runs += plan_evaluation(problem, spec, choose_lr(_of(tuning, problem, spec.name)), config)
        records = run_all(runs)
    rows = [summarize(_of(records, p, spec.name), _of(tuning, p, spec.name)) for p, spec in pairs]
    write_report(folder, config, rows, tuning, records)
    return rows


def plan_tuning(problem: str, spec: OptimizerSpec, config: Config) -> list[Run]:
    """The runs that the choice of a learning rate needs."""
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + config.tuning_seeds)
    return [
        Run(problem, spec.name, lr, spec.weights, seed, config.steps, "tuning") for lr in spec.lrs for seed in seeds
    ]


def plan_evaluation(problem: str, spec: OptimizerSpec, lr: float | None, config: Config) -> list[Run]:
    """The runs that are reported."""
    return [
        Run(problem, spec.name, lr, spec.weights, seed, config.steps, "evaluation", config.curve_every)
        for seed in range(config.seeds)
    ]


def choose_lr(tuning: Sequence[Record]) -> float | None:
    """The learning rate with the best mean validation accuracy, of equals the first; None without records."""
    accuracies = mean_accuracies(tuning)
    return max(accuracies, key=accuracies.__getitem__, default=None)


def write_report(
    folder: Path, config: Config, rows: Sequence[Row], tuning: Sequence[Record], records: Sequence[Record]
) -> None:
    """Writes `results.json`, `table.md` and a picture for each problem."""
    remarks = notes(rows, config.steps)
    write_json(
        folder / "results.json",
        {
            "config": asdict(config),
            "table": [_without_nan(asdict(row) | {"at_edge": row.at_edge}) for row in rows],
            "notes": remarks,
            "tuning": tuning,
            "evaluation": records,
        },
    )
    table = markdown(HEADER, [cells(row) for row in rows])
    (folder / "table.md").write_text("\n".join([*table, "", *(f"- {line}" for line in remarks)]) + "\n")
    for problem in config.problem:
        groups = {_label(row): _of(records, problem, row.optimizer) for row in rows if row.problem == problem}
        title = f"{problem}: mean and range over {config.seeds} seed(s)"
        plot_curves(folder / f"{file_name(problem)}.png", title, groups)


def _of(records: Sequence[Record], problem: str, optimizer: str) -> list[Record]:
    return [r for r in records if r["run"]["problem"] == problem and r["run"]["optimizer"] == optimizer]


def _label(row: Row) -> str:
    return row.optimizer if row.lr is None else f"{row.optimizer} (lr {row.lr:g})"


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {key: finite(value) if isinstance(value, float) else value for key, value in row.items()}


def run(config: Config) -> None:
    rows = evaluate(config)
    print("\n".join(["", *align(HEADER, [cells(row) for row in rows]), "", *notes(rows, config.steps)]))
    print(f"\nCurves, tables and all records are in {config.folder}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
