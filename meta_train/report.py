"""Tables and pictures of records that `meta_train.runs` made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from meta_train.runs import TRAIN_LOSS_STEPS, Record

SMOOTHING = 25  # steps in the moving average of a loss curve, in short runs a tenth of the steps

# Problems of the paper that no learned optimizer is meta-trained or selected on.
TRANSFER_ONLY = ("c10-32",)

HEADER = [
    "problem",
    "optimizer",
    "lr",
    "test accuracy %",
    "train loss",
    "ms/step",
    "optimizer ms/step",
    "tuning runs",
]


@dataclass(frozen=True)
class Row:
    """Results of one optimizer on one problem.

    accuracy_mean, accuracy_std: per cent on test, over runs; sample standard deviation, nan for one run.
    train_loss, validation_accuracy: means over runs.
    ms_per_step, optimizer_ms_per_step: means over runs of each run's median.
    tuning: mean validation accuracy (per cent) of each learning rate that was tried.
    """

    problem: str
    optimizer: str
    runs: int
    diverged: int
    accuracy_mean: float
    accuracy_std: float
    validation_accuracy: float
    train_loss: float
    ms_per_step: float
    optimizer_ms_per_step: float
    lr: float | None
    tuning_runs: int = 0
    tuning: dict[float, float] = field(default_factory=dict)

    @property
    def at_edge(self) -> bool:
        """Whether the learning rate is the smallest or largest that was tried."""
        return self.lr is not None and len(self.tuning) > 1 and self.lr in (min(self.tuning), max(self.tuning))


def summarize(records: Sequence[Record], tuning: Sequence[Record] = ()) -> Row:
    """The row of the evaluation records of one optimizer on one problem, and of its tuning records."""
    accuracies = [100 * record["test"]["accuracy"] for record in records]
    run = records[0]["run"]
    return Row(
        problem=run["problem"],
        optimizer=run["optimizer"],
        runs=len(records),
        diverged=sum(record["diverged"] for record in records),
        accuracy_mean=fmean(accuracies),
        accuracy_std=stdev(accuracies) if len(accuracies) > 1 else nan,
        validation_accuracy=100 * fmean(record["validation"]["accuracy"] for record in records),
        train_loss=fmean(nan if record["train_loss"] is None else record["train_loss"] for record in records),
        ms_per_step=fmean(record["ms_per_step"] for record in records),
        optimizer_ms_per_step=fmean(record["optimizer_ms_per_step"] for record in records),
        lr=run["lr"],
        tuning_runs=len(tuning),
        tuning={lr: 100 * accuracy for lr, accuracy in mean_accuracies(tuning).items()},
    )


def mean_accuracies(records: Sequence[Record]) -> dict[float, float]:
    """Mean validation accuracy, a fraction, of each learning rate that was tried, in the order of the records."""
    lrs = dict.fromkeys(record["run"]["lr"] for record in records)
    return {lr: fmean(r["validation"]["accuracy"] for r in records if r["run"]["lr"] == lr) for lr in lrs}


def cells(row: Row) -> list[str]:
    """A row as text, under `HEADER`."""
    spread = "" if row.runs == 1 else f" ± {row.accuracy_std:.2f}"
    return [
        row.problem,
        row.optimizer,
        "-" if row.lr is None else f"{row.lr:g}" + " *" * row.at_edge,
        f"{row.accuracy_mean:.2f}{spread}",
        f"{row.train_loss:.4f}",
        f"{row.ms_per_step:.1f}",
        f"{row.optimizer_ms_per_step:.2f}",
        str(row.tuning_runs),
    ]


def notes(rows: Sequence[Row], steps: int) -> list[str]:
    """What has to be known to read the table, one sentence a line."""
    lines = [
        f"Test accuracy after exactly {steps} steps: mean ± sample standard deviation over {rows[0].runs} seed(s).",
        f"Train loss: mean over the last {TRAIN_LOSS_STEPS} batches. ms/step: median of whole steps (batch, forward, "
        "backward, optimizer); optimizer ms/step: median of optimizer and scheduler within them.",
        "Tuning runs: whole runs spent on choosing lr, by accuracy on the validation split of the problem's own "
        "training set, on other seeds; nothing else is tuned.",
    ]
    if any(row.problem in TRANSFER_ONLY and row.tuning for row in rows):
        names = ", ".join(TRANSFER_ONLY)
        lines.append(f"{names}: never used to choose a learned optimizer; baselines are tuned on its validation split.")
    if any(row.at_edge for row in rows):
        lines.append("An asterisk: the best lr lies at the edge of its grid, so a wider grid might hold a better one.")
    for row in rows:
        if row.tuning:
            tried = ", ".join(f"{lr:g}: {accuracy:.2f}" for lr, accuracy in row.tuning.items())
            lines.append(f"Validation % by lr, {row.optimizer} on {row.problem}: {tried}.")
        if row.diverged:
            lines.append(f"{row.optimizer} on {row.problem}: the loss of {row.diverged} of {row.runs} runs diverged.")
    return lines


def align(header: Sequence[str], body: Sequence[Sequence[str]], separator: str = "  ") -> list[str]:
    """Lines of a table in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    return [
        separator.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *body]
    ]


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; a `*` or `|` within a cell is escaped."""
    escaped = [[cell.replace("|", r"\|").replace("*", r"\*") for cell in line] for line in body]
    first, *rest = align(header, [["---"] * len(header), *escaped], " | ")
    return [f"| {line} |" for line in (first, *rest)]


def plot_curves(path: Path, title: str, groups: Mapping[str, Sequence[Record]]) -> None:
    """Draws training loss (log) and validation accuracy over steps: mean and range over each group's runs."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, records in groups.items():
        window = max(1, min(SMOOTHING, len(records[0]["losses"]) // 10))
        losses = np.array([_moving_average(record["losses"], window) for record in records])
        _draw(left, np.arange(window, window + losses.shape[1]), losses, label)
        accuracies = np.array([record["curve"]["accuracy"] for record in records])
        _draw(right, np.array(records[0]["curve"]["steps"]), 100 * accuracies, label)
    left.set(xlabel="step", ylabel=f"training loss, mean of {window} steps", yscale="log")
    left.set_ylim(top=_loss_limit(groups))
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    right.set(xlabel="step", ylabel="validation accuracy, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(groups), 3))
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _moving_average(losses: Sequence[float | None], window: int) -> np.ndarray:
    """Means over `window` consecutive losses, nan where one is not finite: (len(losses) - window + 1,)."""
    values = np.array([nan if loss is None else loss for loss in losses])
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _draw(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    """values: (runs, steps). The line ends where a run stops being finite."""
    (line,) = axes.plot(steps, values.mean(0), label=label)
    if len(values) > 1:
        axes.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)


def _loss_limit(groups: Mapping[str, Sequence[Record]]) -> float | None:
    """Top of the loss axis, so that a run that blows up does not flatten the others."""
    first = [record["losses"][0] or 0.0 for records in groups.values() for record in records]
    return 1.5 * max(first) if max(first) > 0 else None
