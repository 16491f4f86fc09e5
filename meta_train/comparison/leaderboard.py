"""Compares optimizers on problems:
`python -m meta_train.comparison.leaderboard --processes 2`.

Baselines choose their learning rate on validation data, then all run with the same
seeds. Prints a table and writes into its folder: `table.md`, `results.json`,
`<problem>.png` (curves), and `records/<problem>.jsonl`, a line for each finished run,
from which the same command resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness import cli
from harness.files import finite, write_json
from harness.settings import check_counts
from harness.tables import align, markdown
from meta_train.comparison import report, standings
from meta_train.comparison.optimizers import OPTIMIZERS, OptimizerSpec, load_optimizer
from meta_train.comparison.plots import plot_curves
from meta_train.comparison.report import Row, mean_validation_losses, notes, summarize
from meta_train.comparison.runs import Record, Run, execute, file_name
from meta_train.comparison.standings import (
    REFERENCE,
    Standing,
    matrix,
    steps_to_reference,
)
from meta_train.problems import LISTS, load_problem, problem_names
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet

FIRST_TUNING_SEED = 1_000_000  # evaluation counts from 0, so the two never meet
CURVE_POINTS = 20
SPLITS = ("validation", "test")
OURS = "default"  # drawn above the others
UNTUNED = ("ng-gnn", "default")

# Both by problem and optimizer.
Grouped = dict[tuple[str, str], list[Record]]
Reached = Mapping[tuple[str, str], float | None]


@dataclass(frozen=True)
class Config:
    """Settings of a comparison."""

    problems: tuple[str, ...] = ("paper", "meta-test")
    """Names of problems or of lists of them, or module:factory."""
    optimizers: tuple[str, ...] = (*OPTIMIZERS, *UNTUNED)
    """Names of baselines or of bundled weights, or paths of weights files."""
    seeds: int = 5
    """Runs per problem and optimizer, with seeds from 0."""
    steps: int | None = None
    """Updates per run; None for each problem's own horizon."""
    tuning_seeds: int = 1
    """Runs per learning rate of a baseline's grid, on seeds of their own."""
    curve_split: str = "validation"
    """What curves are measured on: validation or test."""
    folder: str = "runs/leaderboard"
    processes: int = 1
    """Runs at the same time, of one thread each; times mean little with more than free
    cores."""
    metanet: str | None = None
    """module:Class of your own metanet, which is imported, where weights name one."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "steps", "tuning_seeds", "processes")
        if self.seeds > FIRST_TUNING_SEED:
            raise ValueError(
                f"seeds: expected at most {FIRST_TUNING_SEED}; got {self.seeds}"
            )
        if self.curve_split not in SPLITS:
            raise ValueError(
                f"curve_split: expected one of {', '.join(SPLITS)}; got '{self.curve_split}'"
            )
        for key in ("problems", "optimizers"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"{key}: expected at least one name, each once; got {values}"
                )

    def groups(self) -> dict[str, list[str]]:
        """Over what optimizers are ranked: each list that was asked for, and all
        problems."""
        groups = {
            given: list(LISTS[given]) for given in self.problems if given in LISTS
        }
        names = list(problem_names(self.problems))
        return groups if names in groups.values() else {**groups, "all problems": names}


@dataclass(frozen=True)
class Leaderboard:
    """What a comparison found.

    standings: by the name of the group of problems they are over.
    reached: steps to the reference's final validation loss, by problem and optimizer.
    records: of evaluation, by problem and optimizer. refusals: why an optimizer is not
    among a
        problem's, a sentence each.
    """

    rows: list[Row]
    standings: dict[str, list[Standing]]
    reached: Reached
    records: Grouped
    refusals: list[str] = field(default_factory=list)

    def lines(self, row: Row) -> list[str]:
        """A row as text, with its rank."""
        field = {
            r.optimizer: r.test_loss for r in self.rows if r.problem == row.problem
        }
        rank = standings.ranks(field)[row.optimizer]
        return report.cells(row, rank, self.reached[row.problem, row.optimizer])

    def standings_tables(self, draw: Callable[..., list[str]]) -> list[list[str]]:
        """Lines of the tables of standings, each below its title.

        draw: makes the lines from header and body.
        """
        tables = []
        for group, found in self.standings.items():
            count = max(standing.problems for standing in found)
            tables.append([f"Standings over {group} ({count}):"])
            tables.append(
                draw(standings.HEADER, [standings.cells(one) for one in found])
            )
        return tables


def compare(config: Config) -> Leaderboard:
    """Tunes and runs every optimizer on every problem, and writes the results.

    Raises ValueError if a problem or an optimizer is unknown, before anything runs.
    """
    if config.metanet is not None:
        find_metanet(config.metanet, METANETS, may_import=True)
    specs = [load_optimizer(name) for name in config.optimizers]
    problems = problem_names(config.problems)
    for name in problems:
        load_problem(name)
    folder = Path(config.folder)
    tuning: Grouped = {}
    records: Grouped = {}
    refusals: list[str] = []
    total = sum(len(spec.lrs) * config.tuning_seeds + config.seeds for spec in specs)
    with tqdm(total=len(problems) * total, unit="run") as bar:
        run_all = partial(
            execute, folder=folder / "records", processes=config.processes, bar=bar
        )
        for problem in problems:
            model = load_problem(problem).init(0)
            refused = {spec.name: spec.refusal(model) for spec in specs}
            refusals += [
                f"{name} on {problem}: {why}." for name, why in refused.items() if why
            ]
            able = [spec for spec in specs if not refused[spec.name]]
            bar.update(config.seeds * (len(specs) - len(able)))
            plans = [run for spec in able for run in plan_tuning(problem, spec, config)]
            tuning |= _grouped(run_all(plans))
            plans = []
            for spec in able:
                lr = choose_lr(tuning.get((problem, spec.name), []))
                plans += plan_evaluation(problem, spec, lr, config)
            records |= _grouped(run_all(plans))
    if not records:
        raise ValueError(f"optimizers: expected some that fit: {' '.join(refusals)}")
    board = replace(judge(records, tuning, config.groups()), refusals=refusals)
    write_report(folder, config, board)
    return board


def plan_tuning(problem: str, spec: OptimizerSpec, config: Config) -> list[Run]:
    """The runs that the choice of a learning rate needs."""
    seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + config.tuning_seeds)
    steps = _steps(problem, config)
    choices = product(spec.lrs, seeds)
    return [
        Run(problem, spec.name, lr, None, seed, steps, "tuning") for lr, seed in choices
    ]


def plan_evaluation(
    problem: str, spec: OptimizerSpec, lr: float | None, config: Config
) -> list[Run]:
    """The runs that are reported."""
    steps = _steps(problem, config)
    rest = (
        steps,
        "evaluation",
        max(steps // CURVE_POINTS, 1),
        config.curve_split,
        spec.traced,
    )
    seeds = range(config.seeds)
    return [Run(problem, spec.name, lr, spec.weights, seed, *rest) for seed in seeds]


def choose_lr(tuning: Sequence[Record]) -> float | None:
    """The learning rate with the least mean validation loss, of equals the first; None
    without."""
    losses = mean_validation_losses(tuning)
    return min(losses, key=losses.__getitem__, default=None)


def judge(
    records: Grouped, tuning: Grouped, groups: Mapping[str, Sequence[str]]
) -> Leaderboard:
    """Rows of evaluation and tuning records, and standings over groups of problems."""
    rows = [summarize(found, tuning.get(key, [])) for key, found in records.items()]
    reached = {}
    for (problem, optimizer), found in records.items():
        references = records.get((problem, REFERENCE), [])
        reached[problem, optimizer] = steps_to_reference(found, references)
    ranked = {}
    for group, problems in groups.items():
        among = [row for row in rows if row.problem in problems]
        ranked[group] = standings.standings(among, reached)
    return Leaderboard(rows, ranked, reached, records)


def write_report(folder: Path, config: Config, board: Leaderboard) -> None:
    """Writes `results.json`, `table.md` and a picture for each problem."""
    remarks = [*notes(board.rows, REFERENCE), *board.refusals]
    results = {
        "config": asdict(config),
        "standings": board.standings,
        "table": [asdict(row) | {"at_edge": row.at_edge} for row in board.rows],
        "notes": remarks,
    }
    write_json(folder / "results.json", _json(results))
    tables = [
        *board.standings_tables(markdown),
        ["Test loss and rank:"],
        markdown(*matrix(board.rows)),
        markdown(report.HEADER, [board.lines(row) for row in board.rows]),
        [f"- {line}" for line in remarks],
    ]
    (folder / "table.md").write_text(
        "\n\n".join("\n".join(table) for table in tables) + "\n"
    )
    for problem in dict.fromkeys(row.problem for row in board.rows):
        rows = [row for row in board.rows if row.problem == problem]
        groups = {_label(row): board.records[problem, row.optimizer] for row in rows}
        title = f"{problem}: mean and range over {config.seeds} seed(s)"
        plot_curves(folder / f"{file_name(problem)}.png", title, groups, OURS)


def _steps(problem: str, config: Config) -> int:
    return config.steps or load_problem(problem).steps


def _grouped(records: Sequence[Record]) -> Grouped:
    """In the order of the records."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        key = record["run"]["problem"], record["run"]["optimizer"]
        groups.setdefault(key, []).append(record)
    return groups


def _label(row: Row) -> str:
    return row.optimizer if row.lr is None else f"{row.optimizer} (lr {row.lr:g})"


def _json(value: Any) -> Any:
    """What JSON can hold: standings as dictionaries, None for every inf and nan."""
    if isinstance(value, Standing):
        return _json(asdict(value))
    if isinstance(value, dict):
        return {key: _json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_json(part) for part in value]
    return finite(value) if isinstance(value, float) else value


def run(config: Config) -> None:
    board = compare(config)
    print(
        "\n".join(["", *align(report.HEADER, [board.lines(row) for row in board.rows])])
    )
    for table in board.standings_tables(align):
        print("\n".join(["", *table]))
    print(f"\nCurves, tables, notes and all records are in {config.folder}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
