"""Training losses on VeLO's tasks: `python -m meta_train.comparison.scoreboard`.

Optimizers with a grid get the learning rate with the lowest final training loss on each
task. Losses are means over blocks of 2 % of the steps. The envelope is the lowest loss
of Adam and RAdam at sixty settings, in runs of 100,000 steps (`results/velo`). No
schedule of theirs is for short runs, so compare the steps to a loss. Writes
`scoreboard.json`, `scoreboard.md` and two pictures, and resumes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from harness import cli
from harness.files import make_folder, read_json, write_json
from harness.settings import check_counts
from harness.tables import markdown_table, text_table
from meta_train.comparison.inner_training import DEFAULT, Record, Run
from meta_train.comparison.optimizers import load_optimizer
from meta_train.comparison.runs import execute
from meta_train.problems import load_problem, problem_names

ENVELOPES = Path(__file__).parents[2] / "results/velo/envelopes.json"
TARGET_STEP = 10_000  # of the envelope, whose loss is to be reached


@dataclass(frozen=True)
class Config:
    """What is trained."""

    problems: tuple[str, ...] = ("velo",)
    """Names of VeLO's tasks."""
    optimizers: tuple[str, ...] = (DEFAULT, "celo2")
    steps: int | None = None
    """Steps of a run; None for those of the task."""
    seeds: int = 2
    """Runs of each task, optimizer and learning rate, with seeds from 0."""
    processes: int = 2
    folder: str = "results/velo"

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "processes")


@dataclass(frozen=True)
class Score:
    """An optimizer on a task, at its best learning rate.

    Attributes:
        steps: ends of the blocks. losses: their mean training losses, over all seeds.
        seconds: of a run.
        target: the envelope's loss at 10,000 steps. reached: the end of the first block
            at or below it, None if there is none.
    """

    problem: str
    optimizer: str
    lr: float | None
    steps: list[int]
    losses: list[float]
    seconds: float
    target: float
    reached: int | None

    @property
    def final(self) -> float:
        return self.losses[-1]


def plan(problem: str, optimizer: str, config: Config) -> dict[float | None, list[Run]]:
    """Runs by learning rate."""
    spec = load_optimizer(optimizer)
    steps = config.steps or load_problem(problem).steps
    return {
        lr: [
            Run(problem, optimizer, lr, spec.weights, seed, steps, "tuning")
            for seed in range(config.seeds)
        ]
        for lr in spec.lrs or (None,)
    }


def measure(config: Config) -> list[Score]:
    """Trains what is not on record yet."""
    envelopes = read_json(ENVELOPES, "envelopes")
    plans = {
        (problem, optimizer): plan(problem, optimizer, config)
        for problem in problem_names(config.problems)
        for optimizer in config.optimizers
    }
    runs = [
        run for by_lr in plans.values() for of_lr in by_lr.values() for run in of_lr
    ]
    with tqdm(total=len(runs), unit="run") as bar:
        made = execute(runs, Path(config.folder, "records"), config.processes, bar)
    records = dict(zip(runs, made, strict=True))
    scores = []
    for (problem, optimizer), by_lr in plans.items():
        target = loss_at(envelopes, problem, TARGET_STEP)
        of_rates = [
            score_of(problem, optimizer, lr, [records[run] for run in of_lr], target)
            for lr, of_lr in by_lr.items()
        ]
        scores.append(min(of_rates, key=lambda score: score.final))
    return scores


def loss_at(envelopes: Mapping[str, Any], problem: str, step: int) -> float:
    """The loss of a task's envelope, between its points by interpolation."""
    return float(np.interp(step, envelopes["steps"], envelopes["losses"][problem]))


def score_of(
    problem: str,
    optimizer: str,
    lr: float | None,
    records: Sequence[Record],
    target: float,
) -> Score:
    """records: of all seeds."""
    every = records[0]["losses_every"]
    curves = [
        [inf if loss is None else loss for loss in record["losses"]]
        for record in records
    ]
    losses = [fmean(block) for block in zip(*curves, strict=True)]
    steps = [every * (i + 1) for i in range(len(losses))]
    reached = next((s for s, x in zip(steps, losses, strict=True) if x <= target), None)
    seconds = fmean(record["seconds"] for record in records)
    return Score(
        problem, optimizer, lr, steps, losses, seconds, round(target, 5), reached
    )


def rows_of(scores: Sequence[Score]) -> list[dict[str, str]]:
    """A row for each task."""
    rows = []
    for problem in dict.fromkeys(score.problem for score in scores):
        of_task = [score for score in scores if score.problem == problem]
        row = {"task": problem, "envelope": f"{of_task[0].target:.4g}"}
        fastest = min(score.seconds for score in of_task)
        for score in of_task:
            name = score.optimizer
            row[name] = f"{score.final:.4g}"
            row[f"{name} reaches it at"] = str(score.reached or "not")
            row[f"{name}, same seconds"] = f"{loss_in(score, fastest):.4g}"
        rows.append(row)
    return rows


def loss_in(score: Score, seconds: float) -> float:
    """The training loss after some seconds of the run."""
    share = min(1.0, seconds / score.seconds)
    block = max(1, round(share * len(score.losses)))
    return score.losses[block - 1]


def summary(scores: Sequence[Score]) -> str:
    """How many envelopes each optimizer reaches, and when."""
    lines = []
    for name in dict.fromkeys(score.optimizer for score in scores):
        own = [score for score in scores if score.optimizer == name]
        shares = [s.reached / TARGET_STEP for s in own if s.reached is not None]
        text = f"{name} reaches the envelope's loss at {TARGET_STEP:,} steps"
        text += f" on {len(shares)} of {len(own)} tasks"
        if shares:
            text += f", there after {100 * median(shares):.0f} % of the steps (median)"
        lines.append(f"{text}.")
    return "\n".join(lines)


def draw_curves(path: Path, scores: Sequence[Score]) -> None:
    """Training losses over steps, a panel for each task."""
    problems = list(dict.fromkeys(score.problem for score in scores))
    columns = 5
    height = -(-len(problems) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * height), layout="constrained")
    panels = list(figure.subplots(height, columns, squeeze=False).flat)
    for panel in panels:
        panel.set_visible(False)
    for panel, problem in zip(panels, problems, strict=False):
        panel.set_visible(True)
        for score in (x for x in scores if x.problem == problem):
            panel.plot(score.steps, score.losses, label=score.optimizer)
            panel.axhline(score.target, color="gray", linewidth=0.8)
        panel.set_yscale("log")
        panel.set_title(problem, fontsize=7)
        panel.tick_params(labelsize=6, which="both")
    figure.axes[0].legend(fontsize=6)
    figure.savefig(path, dpi=120)


def draw_shares(path: Path, scores: Sequence[Score]) -> None:
    """The share of tasks whose envelope is reached, over steps."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    panel = figure.subplots()
    for name in dict.fromkeys(score.optimizer for score in scores):
        own = [score for score in scores if score.optimizer == name]
        reached = sorted(s.reached for s in own if s.reached is not None)
        shares = [(i + 1) / len(own) for i in range(len(reached))]
        panel.step([0, *reached], [0.0, *shares], where="post", label=name)
    panel.set_xlabel("steps")
    panel.set_ylabel(f"tasks at the envelope of {TARGET_STEP:,} steps")
    panel.set_ylim(0, 1)
    panel.legend()
    figure.savefig(path, dpi=120)


def run(config: Config) -> None:
    scores = measure(config)
    folder = Path(config.folder)
    make_folder(folder)
    write_json(folder / "scoreboard.json", [asdict(score) for score in scores])
    draw_curves(folder / "curves.png", scores)
    draw_shares(folder / "reached.png", scores)
    rows, text = rows_of(scores), summary(scores)
    (folder / "scoreboard.md").write_text(f"{text}\n\n{markdown_table(rows)}\n")
    print(f"{text_table(rows)}\n\n{text}\nAll results are in {config.folder}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
