"""Compares optimizers on problems:
`python -m meta_train.comparison.leaderboard --processes 2`.

Baselines choose their learning rate on validation data, then all run with the same
seeds. If `default` is among the optimizers, the others also run as long as it, with
schedules and learning rates for that. Prints a table and writes into its folder:
`table.md`, `results.json`, `<problem>.png` (curves), and `records/<problem>.jsonl`, a
line for each finished run, from which the same command resumes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

from tqdm import tqdm

from harness import cli
from harness.errors import Interrupted
from harness.files import write_json
from harness.settings import check_choice, check_counts
from harness.tables import markdown_table, text_table
from meta_train.comparison.inner_training import DEFAULT, Record, Run
from meta_train.comparison.optimizers import (
    OPTIMIZERS,
    ComparedOptimizer,
    import_metanet,
    load_optimizer,
)
from meta_train.comparison.plots import plot_curves
from meta_train.comparison.report import (
    REFERENCE,
    Ranking,
    Row,
    loss_table,
    mean_validation_losses,
    notes,
    rank_optimizers,
    ranks,
    summarize,
)
from meta_train.comparison.runs import execute, file_name
from meta_train.problems import LISTS, load_problem, problem_names
from ngopt.race.equal_time import steps_in_same_time
from ngopt.race.tuning import FIRST_TUNING_SEED, best_lr

CURVE_POINTS = 20
SPLITS = ("validation", "test")
UNTUNED = ("ng-gnn", DEFAULT)

RecordGroups = dict[tuple[str, str], list[Record]]
"""Records by problem and optimizer."""

Horizons = list[tuple[ComparedOptimizer, int]]
"""Optimizers and their numbers of steps."""

RunAll = Callable[..., list[Record]]
"""`execute` for some runs and a number of processes."""


@dataclass(frozen=True)
class Runs:
    """Records of tuning and of evaluation runs."""

    tuning: RecordGroups = field(default_factory=dict)
    evaluation: RecordGroups = field(default_factory=dict)

    def update(self, other: "Runs") -> None:
        self.tuning.update(other.tuning)
        self.evaluation.update(other.evaluation)

    def rows(self) -> list[Row]:
        rows = []
        for (problem, optimizer), evaluated in self.evaluation.items():
            references = self.evaluation.get((problem, REFERENCE), [])
            tuned = self.tuning.get((problem, optimizer), [])
            rows.append(summarize(evaluated, tuned, references))
        return rows


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
    """Runs per learning rate of a baseline's grid, on other seeds than these."""
    curve_split: str = "validation"
    """What curves are measured on: validation or test."""
    folder: str = "runs/leaderboard"
    processes: int = 1
    """Runs at the same time, of one thread each; times mean little with more than free
    cores."""
    equal_time: bool = True
    """Whether the others also run as long as `default`."""
    metanet: str | None = None
    """module:Class of your own metanet, which is imported, where weights name one."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "steps", "tuning_seeds", "processes")
        if self.seeds > FIRST_TUNING_SEED:
            raise ValueError(
                f"seeds: expected at most {FIRST_TUNING_SEED}; got {self.seeds}"
            )
        check_choice("curve_split", self.curve_split, SPLITS)
        for key in ("problems", "optimizers"):
            names = getattr(self, key)
            if not names or len(set(names)) < len(names):
                raise ValueError(
                    f"{key}: expected at least one name, each once; got {names}"
                )

    def groups(self) -> dict[str, list[str]]:
        """Problems that optimizers are ranked over: each list given, and all."""
        groups = {name: list(LISTS[name]) for name in self.problems if name in LISTS}
        names = list(problem_names(self.problems))
        return groups if names in groups.values() else {**groups, "all problems": names}


@dataclass(frozen=True)
class Leaderboard:
    """The results of a comparison.

    rankings: by the name of the group of problems they are over.
    records: of evaluation runs.
    refusals: a sentence for each optimizer that cannot train a problem's network.
    """

    rows: list[Row]
    rankings: dict[str, list[Ranking]]
    records: RecordGroups
    refusals: list[str] = field(default_factory=list)

    def cells(self) -> list[dict[str, str]]:
        """The table of all rows."""
        pairs = zip(self.rows, ranks(self.rows), strict=True)
        return [row.cells(rank) for row, rank in pairs]

    def ranking_tables(self) -> dict[str, list[dict[str, str]]]:
        """The table of each ranking by its title."""
        tables = {}
        for group, rankings in self.rankings.items():
            count = max(ranking.problems for ranking in rankings)
            title = f"Standings over {group} ({count}):"
            tables[title] = [ranking.cells() for ranking in rankings]
        return tables


def compare(config: Config) -> Leaderboard:
    """Tunes and runs every optimizer on every problem, and writes the results.

    Raises ValueError if a problem or an optimizer is unknown, before anything runs.
    """
    import_metanet(config.metanet)
    specs = list(map(load_optimizer, config.optimizers))
    problems = problem_names(config.problems)
    for name in problems:
        load_problem(name)
    folder = Path(config.folder)
    at_equal_steps, in_same_seconds = Runs(), Runs()
    refusals: list[str] = []
    with tqdm(total=len(problems) * count_runs(specs, config), unit="run") as bar:
        run_all = partial(execute, folder=folder / "records", bar=bar)
        for problem in problems:
            model = load_problem(problem).init(0)
            accepted = []
            for spec in specs:
                if refusal := spec.refusal(model):
                    refusals.append(f"{spec.name} on {problem}: {refusal}.")
                    bar.update(config.seeds)
                else:
                    accepted.append(spec)
            steps = config.steps or load_problem(problem).steps
            horizons = [(spec, steps) for spec in accepted]
            runs = tune_and_evaluate(problem, horizons, config, run_all)
            at_equal_steps.update(runs)
            if config.equal_time and DEFAULT in [spec.name for spec in accepted]:
                bar.total += len(accepted) - 1 + count_runs(accepted, config)
                horizons = in_default_seconds(
                    problem, horizons, runs.evaluation, run_all
                )
                runs = tune_and_evaluate(problem, horizons, config, run_all)
                in_same_seconds.update(runs)
    if not at_equal_steps.evaluation:
        raise ValueError(
            "optimizers: expected one that can train the problems' networks; got none. "
            + " ".join(refusals)
        )
    board = summarize_all(at_equal_steps, in_same_seconds, config.groups())
    board = replace(board, refusals=refusals)
    write_report(folder, config, board)
    return board


def count_runs(specs: Sequence[ComparedOptimizer], config: Config) -> int:
    """Tuning and evaluation runs of one problem."""
    return sum(len(spec.lrs) * config.tuning_seeds + config.seeds for spec in specs)


def tune_and_evaluate(
    problem: str, horizons: Horizons, config: Config, run_all: RunAll
) -> Runs:
    """Runs of all optimizers, each at the best learning rate for its steps."""
    planned = []
    for spec, steps in horizons:
        planned += plan_tuning(problem, spec, steps, config.tuning_seeds)
    tuning = _grouped(run_all(planned, processes=config.processes))
    planned = []
    for spec, steps in horizons:
        losses = mean_validation_losses(tuning.get((problem, spec.name), []))
        planned += plan_evaluation(problem, spec, steps, best_lr(losses), config)
    return Runs(tuning, _grouped(run_all(planned, processes=config.processes)))


def in_default_seconds(
    problem: str, horizons: Horizons, evaluation: RecordGroups, run_all: RunAll
) -> Horizons:
    """The numbers of steps that take as long as the default's run.

    evaluation: records of runs, at whose learning rates steps are timed.
    """
    weights = load_optimizer(DEFAULT).weights
    in_seconds = []
    for spec, steps in horizons:
        if spec.name != DEFAULT:
            lr = evaluation[problem, spec.name][0]["run"]["lr"]
            run = Run(problem, spec.name, lr, weights, 0, steps, "timing")
            (timing,) = run_all([run], processes=1)
            ms = timing["ms_per_step"], timing["default_ms_per_step"]
            steps = steps_in_same_time(steps, *ms)
        in_seconds.append((spec, steps))
    return in_seconds


def plan_tuning(
    problem: str, spec: ComparedOptimizer, steps: int, seeds: int
) -> list[Run]:
    """Runs with all learning rates of an optimizer's grid, each with `seeds` seeds."""
    cases = product(spec.lrs, range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + seeds))
    return [
        Run(problem, spec.name, lr, None, seed, steps, "tuning") for lr, seed in cases
    ]


def plan_evaluation(
    problem: str, spec: ComparedOptimizer, steps: int, lr: float | None, config: Config
) -> list[Run]:
    """The runs that are reported."""
    first = Run(
        problem,
        spec.name,
        lr,
        spec.weights,
        0,
        steps,
        phase="evaluation",
        curve_every=max(steps // CURVE_POINTS, 1),
        curve_split=config.curve_split,
        traced=spec.traced,
    )
    return [replace(first, seed=seed) for seed in range(config.seeds)]


def summarize_all(
    at_equal_steps: Runs, in_same_seconds: Runs, groups: Mapping[str, Sequence[str]]
) -> Leaderboard:
    """Rows of all records, and rankings over groups of problems."""
    same = {(row.problem, row.optimizer): row for row in in_same_seconds.rows()}
    rows, rankings = [], {}
    for row in at_equal_steps.rows():
        in_seconds = same.get((row.problem, row.optimizer))
        rows.append(replace(row, in_same_seconds=in_seconds))
    for group, problems in groups.items():
        rows_of_group = [row for row in rows if row.problem in problems]
        rankings[group] = rank_optimizers(rows_of_group)
    return Leaderboard(rows, rankings, at_equal_steps.evaluation)


def write_report(folder: Path, config: Config, board: Leaderboard) -> None:
    """Writes `results.json`, `table.md` and a picture for each problem."""
    remarks = [*notes(board.rows), *board.refusals]
    results = {
        "config": asdict(config),
        "standings": {
            group: list(map(asdict, rankings))
            for group, rankings in board.rankings.items()
        },
        "table": [asdict(row) | {"at_edge": row.at_edge} for row in board.rows],
        "notes": remarks,
    }
    write_json(folder / "results.json", results)
    parts = []
    for title, table in board.ranking_tables().items():
        parts += [title, markdown_table(table)]
    parts += ["Test loss and rank:", markdown_table(loss_table(board.rows))]
    parts.append(markdown_table(board.cells()))
    parts.append("\n".join(f"- {remark}" for remark in remarks))
    (folder / "table.md").write_text("\n\n".join(parts) + "\n")
    for problem in dict.fromkeys(row.problem for row in board.rows):
        groups = {}
        for row in board.rows:
            if row.problem == problem:
                lr = "" if row.lr is None else f" (lr {row.lr:g})"
                groups[row.optimizer + lr] = board.records[problem, row.optimizer]
        title = f"{problem}: mean and range over {config.seeds} seed(s)"
        plot_curves(folder / f"{file_name(problem)}.png", title, groups, DEFAULT)


def _grouped(records: Sequence[Record]) -> RecordGroups:
    """In the order of the records."""
    groups: RecordGroups = {}
    for record in records:
        key = record["run"]["problem"], record["run"]["optimizer"]
        groups.setdefault(key, []).append(record)
    return groups


def run(config: Config) -> None:
    try:
        board = compare(config)
    except KeyboardInterrupt:
        raise Interrupted(
            f"finished runs are in '{Path(config.folder) / 'records'}'; the same "
            "command goes on from there"
        ) from None
    print(f"\n{text_table(board.cells())}")
    for title, table in board.ranking_tables().items():
        print(f"\n{title}\n\n{text_table(table)}")
    print(f"\nCurves, tables, notes and all records are in {config.folder}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
