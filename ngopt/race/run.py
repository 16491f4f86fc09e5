"""A whole race: tunes learning rates, trains at the best of each, writes the report.

Optimizers are compared at equal steps, and in the seconds of the default's run.

The report is a table, a picture, a page and a JSON file.
"""

import base64
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from ngopt.graph.summary import table_lines
from ngopt.race.equal_time import (
    mean_ms,
    step_in_turns,
    steps_in_same_time,
    timed_steps,
    turns_of,
)
from ngopt.race.optimizers import OPTIMIZERS, OptimizerSpec
from ngopt.race.training import Problem, Run, load_problem, train, training_loop
from ngopt.race.tuning import FIRST_TUNING_SEED, best_lr, is_at_edge, tune

DEFAULT = "ngopt"  # whose seconds the others get
HEADER = (
    *("optimizer", "lr", "tuning runs", "loss", "train loss", "ms/step", "excess"),
    *("in the same seconds", "steps"),
)
SMOOTHING = 0.95  # of the losses that are drawn
LOG_PAUSE = 60.0  # seconds between lines of progress, if stderr is no terminal


@dataclass(frozen=True)
class Settings:
    """optimizers: names in `OPTIMIZERS`. folder: of the report. as_json: prints JSON.

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
            if name not in OPTIMIZERS:
                known = ", ".join(OPTIMIZERS)
                raise ValueError(f"race: expected optimizers of {known}; got '{name}'.")
        for name in ("steps", "seeds"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"race: expected {name} of 1 or more; got {count}.")


@dataclass(frozen=True)
class Result:
    """The runs of an optimizer at its best learning rate, one a seed.

    tried: learning rates of the tuning. at_edge: whether the best is the largest or
    smallest of them.
    in_same_seconds: runs that last as long as the default's, at the best rate for their
        number of steps; None without the default.
    """

    optimizer: str
    lr: float | None
    tried: list[float]
    runs: list[Run]
    at_edge: bool = False
    in_same_seconds: "Result | None" = None

    @property
    def score(self) -> float:
        return fmean(run.score for run in self.runs)

    def cells(self) -> tuple[str, str]:
        """Loss, with an asterisk if the rate is at the edge, and steps."""
        loss = _spread([run.score for run in self.runs])
        return loss + "*" * self.at_edge, f"{self.steps:,}"

    @property
    def steps(self) -> int:
        return len(self.runs[0].losses)

    @property
    def milliseconds(self) -> float:
        """Mean of a whole training step."""
        return fmean(1e3 * (run.seconds[-1] / len(run.seconds)) for run in self.runs)


def run(path: str, settings: Settings) -> list[Result]:
    """Runs the race and prints its table, or JSON."""
    specs = [OPTIMIZERS[name] for name in settings.optimizers]
    for spec in specs:
        spec.check()
    problem = load_problem(path)
    runs = sum(len(spec.lrs) + settings.seeds for spec in specs)
    begin = time.perf_counter()
    pause = 0.1 if sys.stderr.isatty() else LOG_PAUSE
    with tqdm(
        total=runs * settings.steps,
        unit="step",
        mininterval=pause,
        maxinterval=max(pause, 10.0),
    ) as bar:
        results = [_result(problem, spec, settings, bar) for spec in specs]
        if DEFAULT in settings.optimizers:
            results = [
                _with_same_seconds(problem, result, settings, bar) for result in results
            ]
    title = f"{problem.name}, {settings.steps} steps, {settings.seeds} seed(s)"
    write_report(settings.folder, title, results)
    if settings.as_json:
        print(json.dumps({result.optimizer: _losses(result) for result in results}))
    else:
        minutes = (time.perf_counter() - begin) / 60
        print(f"{title}, {minutes:.1f} minutes\n\n{table(results)}\n")
        print(f"Report: {(settings.folder / 'race.html').absolute()}")
    return results


def _result(
    problem: Problem, spec: OptimizerSpec, settings: Settings, bar: tqdm
) -> Result:
    """The result of one optimizer, at the rate with the lowest loss on another seed."""

    def on_step(loss: float) -> None:
        bar.update()
        bar.set_postfix(loss=f"{loss:.3g}", refresh=False)

    def trained(lr: float | None, seed: int) -> Run:
        rate = "" if lr is None else f" lr {lr:g}"
        bar.set_description(f"{spec.name}{rate}", refresh=False)
        steps = settings.steps
        return train(problem, spec, lr, seed, steps, settings.device, on_step)

    def loss_of_run(lr: float) -> float:
        if lr not in spec.lrs:
            bar.total += settings.steps
        return trained(lr, FIRST_TUNING_SEED).score

    losses = tune(spec.lrs, loss_of_run)
    lr = best_lr(losses)
    runs = [trained(lr, seed) for seed in range(settings.seeds)]
    return Result(spec.name, lr, list(losses), runs, is_at_edge(lr, losses))


def _with_same_seconds(
    problem: Problem, result: Result, settings: Settings, bar: tqdm
) -> Result:
    """Adds the result of runs that last as long as the default's."""
    spec = OPTIMIZERS[result.optimizer]
    steps = settings.steps
    if spec.name != DEFAULT:
        steps = _steps_in_same_seconds(problem, result, settings, bar)
    if steps == settings.steps:
        return replace(result, in_same_seconds=result)
    bar.total += steps * (len(spec.lrs) + settings.seeds)
    same = _result(problem, spec, replace(settings, steps=steps), bar)
    return replace(result, in_same_seconds=same)


def _steps_in_same_seconds(
    problem: Problem, result: Result, settings: Settings, bar: tqdm
) -> int:
    """Steps that take as long as the default's run, timed in turns with its steps."""
    bar.set_description(f"time of {result.optimizer}", refresh=False)
    steps, device = settings.steps, settings.device
    loops = []
    for name, lr in ((result.optimizer, result.lr), (DEFAULT, None)):
        loops.append(training_loop(problem, OPTIMIZERS[name], lr, 0, steps, device))
    bar.total += len(loops) * timed_steps(steps)

    def counted_turns() -> Iterator[int]:
        for turn in turns_of(timed_steps(steps)):
            yield turn
            bar.update(len(loops) * turn)

    step_in_turns(loops, counted_turns())
    ms, default_ms = (mean_ms(loop.ms, steps) for loop in loops)
    return steps_in_same_time(steps, ms, default_ms)


def _losses(result: Result) -> dict[str, float]:
    losses = {"loss": result.score}
    if result.in_same_seconds is not None:
        losses["in the same seconds"] = result.in_same_seconds.score
    return losses


def table(results: list[Result]) -> str:
    """Optimizers, the best first, aligned for a terminal, with notes."""
    best = min(result.score for result in results)
    rows: list[tuple[str, ...]] = [HEADER]
    for result in sorted(results, key=lambda result: result.score):
        excess = 100 * (result.score / best - 1) if best > 0 else 0.0
        rate = "none" if result.lr is None else f"{result.lr:g}"
        same = result.in_same_seconds
        row = (
            result.optimizer,
            rate + "*" * result.at_edge,
            str(len(result.tried)),
            _spread([run.score for run in result.runs]),
            _spread([run.train_loss for run in result.runs]),
            f"{result.milliseconds:.1f}",
            f"{excess:+.1f} %",
            *(("-", "-") if same is None else same.cells()),
        )
        rows.append(row)
    lines = table_lines(rows, HEADER[1:])
    if "*" in "".join(lines):
        lines += ["", "* the largest or smallest rate tried; others may be better"]
    if any(result.in_same_seconds is not None for result in results):
        lines += ["", f"in the same seconds: as long as {DEFAULT}, tuned for that time"]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{fmean(values):.4g}"
    return f"{mean} ± {stdev(values):.2g}" if len(values) > 1 else mean


def write_report(folder: Path, title: str, results: list[Result]) -> None:
    """Writes `race.json`, `race.png` and `race.html` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [asdict(result) | {"score": result.score} for result in results]
    (folder / "race.json").write_text(json.dumps({"title": title, "results": records}))
    draw(folder / "race.png", title, results)
    picture = base64.b64encode((folder / "race.png").read_bytes()).decode()
    page = (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width'>"
        "<style>body{font:16px sans-serif;margin:2em;max-width:60em}"
        "pre{overflow-x:auto}img{max-width:100%}</style>"
        f"<h1>{escape(title)}</h1><pre>{escape(table(results))}</pre>"
        f"<img alt='Loss over steps and seconds' src='data:image/png;base64,{picture}'>"
    )
    (folder / "race.html").write_text(page)


def draw(path: Path, title: str, results: list[Result]) -> None:
    """Smoothed training loss of the first seed, over steps and over seconds.

    Dashed over seconds: runs as long as the default's.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_steps, over_seconds = figure.subplots(1, 2, sharey=True)
    for result in results:
        run = result.runs[0]
        losses = smoothed(run.losses)
        rate = "" if result.lr is None else f", lr {result.lr:g}"
        (line,) = over_steps.plot(losses, label=f"{result.optimizer}{rate}")
        over_seconds.plot(run.seconds, losses, color=line.get_color())
        same = result.in_same_seconds
        if same is not None and same.steps != result.steps:
            run = same.runs[0]
            style = {"color": line.get_color(), "linestyle": "--"}
            over_seconds.plot(run.seconds, smoothed(run.losses), **style)
    over_steps.set_xlabel("steps")
    over_seconds.set_xlabel(f"seconds of training; dashed: as many as {DEFAULT}'s")
    over_steps.grid(alpha=0.3)
    over_seconds.grid(alpha=0.3)
    over_steps.set_ylabel("training loss")
    over_steps.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def smoothed(losses: list[float]) -> list[float]:
    """An exponential average without the bias of its beginning."""
    means, mean, weight = [], 0.0, 0.0
    for loss in losses:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + 1 - SMOOTHING
        means.append(mean / weight)
    return means
