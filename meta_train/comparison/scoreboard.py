"""Training losses on VeLO's tasks: `python -m meta_train.comparison.scoreboard`.

Two comparisons. In short runs all optimizers train each task; all are also trained as
long as the fastest, with a schedule for fewer steps. In full runs, of 10,000 steps, the
default alone is compared with the envelope: the lowest loss of Adam and RAdam at sixty
settings, in runs of 100,000 steps (`results/velo`). No schedule of theirs is for
shorter runs, so compare the steps to a loss.

Optimizers with a grid get the learning rate with the lowest final training loss of seed
0 on each task. Losses are means over blocks of 2 % of the steps. Writes `short.json`,
`full.json`, tables as `scoreboard.md`, and two pictures, and resumes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, product
from math import inf, isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from harness import cli
from harness.files import make_folder, or_inf, read_json, write_json
from harness.settings import check_counts
from harness.tables import markdown_table, text_table
from meta_train.comparison.inner_training import DEFAULT, Record, Run
from meta_train.comparison.optimizers import load_optimizer
from meta_train.comparison.runs import execute
from meta_train.problems import load_problem, problem_names
from ngopt.race.equal_time import steps_in_same_time

ENVELOPES = Path(__file__).parents[2] / "results/velo/envelopes.json"
TARGET_STEP = 10_000  # of the envelope, whose loss is to be reached


@dataclass(frozen=True)
class Config:
    """What is trained."""

    problems: tuple[str, ...] = ("velo",)
    """Names of VeLO's tasks."""
    optimizers: tuple[str, ...] = (
        DEFAULT,
        "learned-step",
        "celo2",
        "muon-adamw-rate",
        "amuse-default",
        "schedule-free-default",
        "ademamix-default",
        "prodigy",
    )
    """Of the short runs."""
    steps: int = 2000
    """Steps of a short run."""
    full: bool = True
    """Whether to make full runs, too."""
    seeds: int = 2
    """Runs of each task and optimizer, with seeds from 0; the first one is made with
    each learning rate."""
    processes: int = 2
    folder: str = "results/velo"

    def __post_init__(self) -> None:
        check_counts(self, "steps", "seeds", "processes")


@dataclass(frozen=True)
class Score:
    """An optimizer on a task, at its best learning rate.

    Attributes:
        losses: mean training losses of blocks, over all seeds. every: steps of a block.
        time: of a step, relative to the default's.
        same_seconds: loss of the last steps of runs as long as those of the fastest
            optimizer.
        target: the envelope's loss at 10,000 steps. reached: the end of the first block
            at or below it, None if there is none.
    """

    problem: str
    optimizer: str
    lr: float | None
    losses: list[float]
    every: int
    time: float
    same_seconds: float
    target: float
    reached: int | None

    @property
    def steps(self) -> list[int]:
        """The ends of the blocks."""
        return [self.every * (i + 1) for i in range(len(self.losses))]

    @property
    def final(self) -> float:
        return self.losses[-1]


def measure(
    config: Config, optimizers: Iterable[str], steps: int | None
) -> list[Score]:
    """Trains and times what is not on record yet. steps: None for those of the task."""
    envelopes = read_json(ENVELOPES, "envelopes")
    best = best_rates(config, optimizers, steps)
    seeds = range(config.seeds)
    records = execute_all([replace(run, seed=i) for run in best for i in seeds], config)
    times = relative_times(best, config)
    as_long = equally_long(times)
    runs_of_time = [replace(run, seed=i) for run in as_long.values() for i in seeds]
    records |= execute_all(runs_of_time, config)
    scores = []
    for run in best:
        target = loss_at(envelopes, run.problem, TARGET_STEP)
        of_run = [records[replace(run, seed=i)] for i in seeds]
        of_time = [records[replace(as_long[run], seed=i)] for i in seeds]
        scores.append(score_of(run, of_run, of_time, times[run], target))
    return scores


def best_rates(
    config: Config, optimizers: Iterable[str], steps: int | None
) -> list[Run]:
    """A run of seed 0 for each task and optimizer, with the learning rate of the lowest
    final loss."""
    grids = []
    for problem, name in product(problem_names(config.problems), optimizers):
        spec = load_optimizer(name)
        steps_of_task = steps or load_problem(problem).steps
        run = Run(problem, name, None, spec.weights, 0, steps_of_task, "tuning")
        run = replace(run, traced=spec.traced)
        grids.append([replace(run, lr=lr) for lr in spec.lrs or (None,)])
    records = execute_all(list(chain.from_iterable(grids)), config)
    return [min(grid, key=lambda run: losses_of(records[run])[-1]) for grid in grids]


def relative_times(runs: Sequence[Run], config: Config) -> dict[Run, float]:
    """The time of a step, relative to the default's."""
    weights = load_optimizer(DEFAULT).weights
    timings = {
        run: replace(run, weights=weights, phase="timing")
        for run in runs
        if run.optimizer != DEFAULT
    }
    # in one process nothing else is running
    records = execute_all(list(timings.values()), replace(config, processes=1))
    times = dict.fromkeys(runs, 1.0)
    for run, timing in timings.items():
        record = records[timing]
        times[run] = record["ms_per_step"] / record["default_ms_per_step"]
    return times


def equally_long(times: Mapping[Run, float]) -> dict[Run, Run]:
    """Runs with as many steps, and a schedule for them, as fit into the seconds of the
    fastest run of the task. times: see `relative_times`."""
    fastest: dict[str, float] = {}
    for run, time in times.items():
        fastest[run.problem] = min(time, fastest.get(run.problem, inf))
    as_long = {}
    for run, time in times.items():
        steps = steps_in_same_time(run.steps, time, fastest[run.problem])
        as_long[run] = replace(run, steps=steps)
    return as_long


def execute_all(runs: Sequence[Run], config: Config) -> dict[Run, Record]:
    with tqdm(total=len(runs), unit="run", disable=not runs) as bar:
        made = execute(runs, Path(config.folder, "records"), config.processes, bar)
    return dict(zip(runs, made, strict=True))


def losses_of(record: Record) -> list[float]:
    """Mean losses of the blocks."""
    return list(map(or_inf, record["losses"]))


def loss_at(envelopes: Mapping[str, Any], problem: str, step: int) -> float:
    """The loss of a task's envelope, between its points by interpolation."""
    return float(np.interp(step, envelopes["steps"], envelopes["losses"][problem]))


def score_of(
    run: Run,
    records: Sequence[Record],
    records_of_time: Sequence[Record],
    time: float,
    target: float,
) -> Score:
    """run: any of the records' seeds. records_of_time: of `equally_long`. time: see
    `Score`."""
    curves = zip(*map(losses_of, records), strict=True)
    losses = [rounded(block) for block in curves]
    every = records[0]["losses_every"]
    blocks = [i for i, loss in enumerate(losses) if loss <= target]
    return Score(
        problem=run.problem,
        optimizer=run.optimizer,
        lr=run.lr,
        losses=losses,
        every=every,
        time=round(time, 3),
        same_seconds=rounded([or_inf(x["train_loss"]) for x in records_of_time]),
        target=round(target, 5),
        reached=every * (1 + blocks[0]) if blocks else None,
    )


def rounded(losses: Sequence[float]) -> float:
    return float(f"{fmean(losses):.4g}")


def of_tasks(scores: Sequence[Score]) -> list[list[Score]]:
    """The scores of each task."""
    problems = dict.fromkeys(score.problem for score in scores)
    return [[x for x in scores if x.problem == problem] for problem in problems]


def short_rows(
    scores: Sequence[Score], loss_of: Callable[[Score], float]
) -> list[dict[str, str]]:
    """A row of losses for each task."""
    return [
        {"task": of_task[0].problem}
        | {score.optimizer: f"{loss_of(score):.3g}" for score in of_task}
        for of_task in of_tasks(scores)
    ]


def summary_rows(scores: Sequence[Score]) -> list[dict[str, str]]:
    """A row for each optimizer, the lowest mean rank first.

    Equal losses share the mean of their ranks, as in the leaderboard.
    """
    table: Any = pd.DataFrame(
        [{**vars(score), "final": score.final} for score in scores]
    )
    losses = table.groupby("problem")["final"]
    table["rank"] = losses.rank()
    table["is_lowest"] = table["final"] == losses.transform("min")
    by_optimizer = table.groupby("optimizer")
    rows = []
    for name, mean_rank in by_optimizer["rank"].mean().sort_values().items():
        results = by_optimizer.get_group(name)
        row = {"optimizer": str(name), "mean rank": f"{mean_rank:.1f}"}
        row["lowest loss"] = f"{sum(results['is_lowest'])} of {len(results)}"
        row["time of a step"] = f"{median(results['time']):.2f}"
        rows.append(row)
    return rows


def full_rows(scores: Sequence[Score]) -> list[dict[str, str]]:
    """A row for each task, with the step at which the envelope's loss is reached."""
    return [
        {
            "task": score.problem,
            "envelope": f"{score.target:.3g}",
            "final": f"{score.final:.3g}",
            "steps": f"{score.steps[-1]:,}",
            "reached at": f"{score.reached:,}" if score.reached else "not",
        }
        for score in scores
    ]


def summary(scores: Sequence[Score]) -> str:
    """How many envelopes are reached in full runs, and when."""
    of_whole = [score for score in scores if score.steps[-1] == TARGET_STEP]
    steps = [score.reached or inf for score in of_whole]
    reached = sum(map(isfinite, steps))
    text = f"The envelope's loss at {TARGET_STEP:,} steps is reached on {reached} of "
    text += f"{len(steps)} tasks with {TARGET_STEP:,} steps"
    middle = median(steps) if steps else inf
    if isfinite(middle):
        share = 100 * middle / TARGET_STEP
        text += f"; on the median task after {share:.0f} % of the steps"
    return f"{text}."


def draw_curves(path: Path, scores: Sequence[Score]) -> None:
    """Training losses over steps, a panel for each task."""
    tasks = of_tasks(scores)
    columns = 5
    height = -(-len(tasks) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * height), layout="constrained")
    panels = list(figure.subplots(height, columns, squeeze=False).flat)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    for panel, of_task in zip(panels, tasks, strict=False):
        for number, score in enumerate(of_task):  # the first one on top
            line = {"label": score.optimizer, "zorder": 2 + len(of_task) - number}
            panel.plot(score.steps, score.losses, **line)
        panel.set_yscale("log")
        panel.set_title(of_task[0].problem, fontsize=7)
        panel.tick_params(labelsize=6, which="both")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="lower right")
    figure.savefig(path, dpi=120)


def draw_shares(path: Path, scores: Sequence[Score]) -> None:
    """The share of tasks whose envelope is reached, over steps."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    panel = figure.subplots()
    reached = sorted(s.reached for s in scores if s.reached is not None)
    shares = [(i + 1) / len(scores) for i in range(len(reached))]
    panel.step([0, *reached], [0.0, *shares], where="post")
    panel.set_xlabel("steps")
    panel.set_ylabel(f"tasks at the envelope of {TARGET_STEP:,} steps")
    panel.set_ylim(0, 1)
    figure.savefig(path, dpi=120)


def run(config: Config) -> None:
    folder = Path(config.folder)
    make_folder(folder)
    short = measure(config, config.optimizers, config.steps)
    write_json(folder / "short.json", [asdict(score) for score in short])
    draw_curves(folder / "curves.png", short)
    tables = {
        f"Ranks by training loss after {config.steps:,} steps": summary_rows(short),
        f"Training loss after {config.steps:,} steps": short_rows(
            short, lambda score: score.final
        ),
        "Training loss in the seconds of the fastest": short_rows(
            short, lambda score: score.same_seconds
        ),
    }
    if config.full:
        full = measure(config, (DEFAULT,), None)
        write_json(folder / "full.json", [asdict(score) for score in full])
        draw_shares(folder / "reached.png", full)
        tables[f"Full runs: {summary(full)}"] = full_rows(full)
    pages = [f"{title}\n\n{markdown_table(rows)}" for title, rows in tables.items()]
    (folder / "scoreboard.md").write_text("\n\n".join(pages) + "\n")
    for title, rows in tables.items():
        print(f"{title}\n{text_table(rows)}\n")
    print(f"All results are in {config.folder}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
