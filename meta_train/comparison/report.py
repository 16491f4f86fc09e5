"""Rows of a comparison, one for each optimizer on each problem, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, nan
from statistics import fmean

import numpy as np

from meta_train.comparison.runs import TRAIN_LOSS_STEPS, Record

# Problems of the paper that no learned optimizer is meta-trained or selected on.
TRANSFER_ONLY = ("c10-32",)

HEADER = [
    "problem",
    "optimizer",
    "lr",
    "rank",
    "test loss",
    "test accuracy %",
    "validation loss",
    "train loss",
    "steps to reference",
    "seconds to reference",
    "run s",
    "ms/step",
    "optimizer ms/step",
    "tuning runs",
    "tuning s",
]


@dataclass(frozen=True)
class Row:
    """Results of one optimizer on one problem.

    Means over runs; nan where a loss of a run was not finite.

    test_loss_std, accuracy_std: sample standard deviation, nan for one run.
    accuracy_mean: per cent on test; None if the problem has no accuracy, and so is its
    deviation. ms_per_step, optimizer_ms_per_step: mean of each run's median.
    seconds: of a whole run, without evaluation.
    tuning: mean validation loss of each learning rate that was tried; inf if it was not
    finite.
    tuning_seconds: of all runs for tuning together.
    """

    problem: str
    optimizer: str
    runs: int
    steps: int
    diverged: int
    test_loss: float
    test_loss_std: float
    accuracy_mean: float | None
    accuracy_std: float | None
    validation_loss: float
    train_loss: float
    ms_per_step: float
    optimizer_ms_per_step: float
    seconds: float
    lr: float | None
    tuning_runs: int = 0
    tuning_seconds: float = 0.0
    tuning: dict[float, float] = field(default_factory=dict)

    @property
    def at_edge(self) -> bool:
        """Whether the learning rate is the smallest or largest that was tried."""
        return len(self.tuning) > 1 and self.lr in (min(self.tuning), max(self.tuning))

    @property
    def tuned(self) -> bool:
        return self.tuning_runs > 0


def summarize(records: Sequence[Record], tuning: Sequence[Record] = ()) -> Row:
    """The row of one optimizer's evaluation records on one problem, and of its tuning
    records."""
    run = records[0]["run"]
    test_losses = [_number(record["test"]["loss"]) for record in records]
    accuracies = [
        100 * r["test"]["accuracy"]
        for r in records
        if r["test"]["accuracy"] is not None
    ]
    return Row(
        problem=run["problem"],
        optimizer=run["optimizer"],
        runs=len(records),
        steps=run["steps"],
        diverged=sum(record["diverged"] for record in records),
        test_loss=fmean(test_losses),
        test_loss_std=deviation(test_losses),
        accuracy_mean=fmean(accuracies) if accuracies else None,
        accuracy_std=deviation(accuracies) if accuracies else None,
        validation_loss=fmean(
            _number(record["validation"]["loss"]) for record in records
        ),
        train_loss=fmean(_number(record["train_loss"]) for record in records),
        ms_per_step=fmean(record["ms_per_step"] for record in records),
        optimizer_ms_per_step=fmean(
            record["optimizer_ms_per_step"] for record in records
        ),
        seconds=fmean(record["seconds"] for record in records),
        lr=run["lr"],
        tuning_runs=len(tuning),
        tuning_seconds=sum(record["seconds"] for record in tuning),
        tuning=mean_validation_losses(tuning),
    )


def mean_validation_losses(records: Sequence[Record]) -> dict[float, float]:
    """Mean validation loss of each learning rate that was tried, in the order of the
    records.

    inf where a loss is not finite, so that the smallest is the best.
    """
    losses: dict[float, list[float]] = {}
    for record in records:
        loss = record["validation"]["loss"]
        losses.setdefault(record["run"]["lr"], []).append(inf if loss is None else loss)
    return {lr: fmean(values) for lr, values in losses.items()}


def cells(
    row: Row, rank: float | None = None, reached: float | None = None
) -> list[str]:
    """A row as text, under `HEADER`.

    reached: the step at which the row got where the reference ends.
    """
    seconds = None if reached is None else reached * row.seconds / row.steps
    lr = "-" if row.lr is None else f"{row.lr:g}" + " *" * row.at_edge
    accuracy = "-"
    if row.accuracy_mean is not None and row.accuracy_std is not None:
        accuracy = spread(
            f"{row.accuracy_mean:.2f}", f"{row.accuracy_std:.2f}", row.runs
        )
    return [
        row.problem,
        row.optimizer,
        lr,
        "-" if rank is None else f"{rank:g}",
        spread(digits(row.test_loss), f"{row.test_loss_std:.2g}", row.runs),
        accuracy,
        digits(row.validation_loss),
        digits(row.train_loss),
        "-" if reached is None else f"{reached:.0f}",
        "-" if seconds is None else f"{seconds:.1f}",
        f"{row.seconds:.1f}",
        f"{row.ms_per_step:.1f}",
        f"{row.optimizer_ms_per_step:.2f}",
        str(row.tuning_runs),
        f"{row.tuning_seconds:.0f}",
    ]


def notes(rows: Sequence[Row], reference: str) -> list[str]:
    """What has to be known to read the table of all rows, one sentence a line."""
    lines = [
        f"Means over {rows[0].runs} seed(s), ± sample standard deviation; all optimizers have the"
        " same initial weights and batches.",
        f"Train loss: mean over the last {TRAIN_LOSS_STEPS} batches. Steps and seconds to"
        f" reference: until the loss of the curves is as low as that of {reference} at its end "
        f"(same"
        " seed, median over seeds).",
        "run s: all steps, without evaluation. ms/step: median of whole steps (batch, forward,"
        " backward, optimizer); optimizer ms/step: median of optimizer and scheduler.",
        "Tuning runs: whole runs spent on choosing lr, by loss on the problem's validation split,"
        " on other seeds; nothing else is tuned. Rank: by test loss.",
    ]
    if any(row.problem in TRANSFER_ONLY and row.tuned for row in rows):
        lines.append(
            f"{', '.join(TRANSFER_ONLY)}: never used to choose a learned optimizer; baselines are"
            " tuned on its validation split."
        )
    if any(row.at_edge for row in rows):
        lines.append(
            "An asterisk: the best lr is the smallest or the largest that was tried."
        )
    return lines + [line for row in rows for line in _remarks(row)]


def _remarks(row: Row) -> list[str]:
    """What one row's cells do not hold."""
    lines = []
    name = f"{row.optimizer} on {row.problem}"
    if row.tuning:
        tried = ", ".join(f"{lr:g}: {digits(loss)}" for lr, loss in row.tuning.items())
        lines.append(f"Validation loss by lr, {name}: {tried}.")
    if row.diverged:
        lines.append(f"{name}: the loss of {row.diverged} of {row.runs} runs diverged.")
    return lines


def digits(value: float) -> str:
    """Four significant digits, without an exponent unless the number is very small or
    large."""
    return f"{value:.4g}"


def _number(value: float | None) -> float:
    return nan if value is None else value


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation, nan of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else nan


def spread(mean: str, deviation: str, runs: int) -> str:
    """A cell with both; of one run there is no deviation."""
    return mean if runs == 1 else f"{mean} ± {deviation}"
