"""Results of each optimizer on each problem, and rankings over several problems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import fmean, median
from typing import Any

import pandas as pd

from harness.files import or_inf
from harness.tables import plus_minus, sample_deviation
from meta_train.comparison.inner_training import TRAIN_LOSS_STEPS, Record
from ngopt.race.equal_time import EQUAL
from ngopt.race.tuning import is_at_edge

REFERENCE = "adam-cosine"  # steps are counted until its final loss is reached
RIVALS = ("muon-cosine", "soap-cosine")
# Problems of the paper that no learned optimizer is meta-trained or selected on.
TRANSFER_ONLY = ("c10-32",)


@dataclass(frozen=True)
class Row:
    """Results of one optimizer on one problem.

    Means over runs; nan where a loss of a run was not finite.

    test_loss_std, accuracy_std: sample standard deviation, nan for one run.
    accuracy_mean: per cent on test; None if the problem has no accuracy, and so is its
        deviation.
    ms_per_step, optimizer_ms_per_step: mean of each run's median.
    seconds: of a whole run, without evaluation.
    tuning: mean validation loss by learning rate; inf if it was not finite.
    tuning_seconds: of all tuning runs together.
    reached: `steps_to_reference`.
    in_same_seconds: of runs that last as long as the default's; None if there are none.
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
    reached: float | None = None
    in_same_seconds: "Row | None" = None

    @property
    def at_edge(self) -> bool:
        """Whether the learning rate is the smallest or largest that was tried."""
        return is_at_edge(self.lr, self.tuning)

    @property
    def tuned(self) -> bool:
        return self.tuning_runs > 0

    @property
    def loss_cell(self) -> str:
        deviation = f"{self.test_loss_std:.2g}"
        return plus_minus(digits(self.test_loss), deviation, self.runs)

    def cells(self, rank: float | None = None) -> dict[str, str]:
        """The cells of a table by column. rank: among the problem's optimizers."""
        same = self.in_same_seconds
        accuracy = "-"
        if self.accuracy_mean is not None:
            accuracy_std = f"{self.accuracy_std:.2f}"
            accuracy = plus_minus(f"{self.accuracy_mean:.2f}", accuracy_std, self.runs)
        reached_seconds = None
        if self.reached is not None:
            reached_seconds = self.reached * self.seconds / self.steps
        return {
            "problem": self.problem,
            "optimizer": self.optimizer,
            "lr": _optional(self.lr, "{:g}") + " *" * self.at_edge,
            "steps": str(self.steps),
            "rank": _optional(rank, "{:g}"),
            "test loss": self.loss_cell,
            "in the same seconds": "-" if same is None else same.loss_cell,
            "steps in them": "-" if same is None else str(same.steps),
            "test accuracy %": accuracy,
            "validation loss": digits(self.validation_loss),
            "train loss": digits(self.train_loss),
            "steps to reference": _optional(self.reached, "{:.0f}"),
            "seconds to reference": _optional(reached_seconds, "{:.1f}"),
            "run s": f"{self.seconds:.1f}",
            "ms/step": f"{self.ms_per_step:.1f}",
            "optimizer ms/step": f"{self.optimizer_ms_per_step:.2f}",
            "tuning runs": str(self.tuning_runs),
            "tuning s": f"{self.tuning_seconds:.0f}",
        }


def summarize(
    records: Sequence[Record],
    tuning: Sequence[Record] = (),
    references: Sequence[Record] = (),
) -> Row:
    """The row of one optimizer on one problem.

    records: of its evaluation runs. tuning: of its tuning runs. references: evaluation
    runs of the reference.
    """
    run = records[0]["run"]
    columns = pd.json_normalize(list(records), max_level=1)

    def mean(name: str) -> float:
        return fmean(columns[name].astype(float))

    test_losses = columns["test.loss"].astype(float).tolist()
    accuracies = (100 * columns["test.accuracy"].dropna()).tolist()
    return Row(
        problem=run["problem"],
        optimizer=run["optimizer"],
        runs=len(records),
        steps=run["steps"],
        diverged=sum(record["diverged"] for record in records),
        test_loss=fmean(test_losses),
        test_loss_std=sample_deviation(test_losses),
        accuracy_mean=fmean(accuracies) if accuracies else None,
        accuracy_std=sample_deviation(accuracies) if accuracies else None,
        validation_loss=mean("validation.loss"),
        train_loss=mean("train_loss"),
        ms_per_step=mean("ms_per_step"),
        optimizer_ms_per_step=mean("optimizer_ms_per_step"),
        seconds=mean("seconds"),
        lr=run["lr"],
        tuning_runs=len(tuning),
        tuning_seconds=sum(record["seconds"] for record in tuning),
        tuning=mean_validation_losses(tuning),
        reached=steps_to_reference(records, references) if references else None,
    )


def steps_to_reference(
    records: Sequence[Record], references: Sequence[Record]
) -> float | None:
    """Steps until the validation loss is as low as the reference's final one.

    Losses are those of the curves. A run is compared with the reference run of its
    seed. Returns the median over seeds; None if half of them never reach it.
    """
    targets = {run["run"]["seed"]: run["curve"]["loss"][-1] for run in references}
    middle = median(
        _steps_to(record["curve"], targets.get(record["run"]["seed"]))
        for record in records
    )
    return None if middle == inf else middle


def _steps_to(curve: Mapping[str, Any], target: float | None) -> float:
    """The first step with a loss of at most `target`, interpolated; inf if none."""
    if target is None:
        return inf
    step_before, loss_before = 0.0, None
    for step, loss in zip(curve["steps"], curve["loss"], strict=True):
        if loss is not None and loss <= target:
            if loss_before is None:
                return float(step)
            share = (loss_before - target) / (loss_before - loss)
            return step_before + share * (step - step_before)
        step_before, loss_before = step, loss
    return inf


def mean_validation_losses(records: Sequence[Record]) -> dict[float, float]:
    """Mean validation loss by learning rate, in the order of the records.

    inf where a loss is not finite, so that the smallest is the best.
    """
    losses: dict[float, list[float]] = {}
    for record in records:
        losses_of_lr = losses.setdefault(record["run"]["lr"], [])
        losses_of_lr.append(or_inf(record["validation"]["loss"]))
    return {lr: fmean(losses_of_lr) for lr, losses_of_lr in losses.items()}


def notes(rows: Sequence[Row]) -> list[str]:
    """Explanations of the table of all rows, one sentence a line."""
    lines = [
        f"Means over {rows[0].runs} seed(s), ± sample standard deviation; "
        "all optimizers have the same initial weights and batches.",
        f"Train loss: mean over the last {TRAIN_LOSS_STEPS} batches. "
        "Steps and seconds to reference: until the loss of the curves is as low as "
        f"that of {REFERENCE} at its end (same seed, median over seeds).",
        "run s: all steps, without evaluation. ms/step: median of whole steps (batch, "
        "forward, backward, optimizer); optimizer ms/step: median of optimizer and "
        "scheduler.",
        "Tuning runs: whole runs spent on choosing lr, by loss on the problem's "
        "validation split, on other seeds; nothing else is tuned. Rank: by test loss.",
    ]
    if any(row.in_same_seconds is not None for row in rows):
        lines.append(
            "In the same seconds: test loss of runs that last as long as the "
            "default's, with lr tuned for their number of steps. Steps of both are "
            f"timed in turns; if they differ by less than {EQUAL:.0%}, the runs are "
            "those at equal steps."
        )
    if any(row.problem in TRANSFER_ONLY and row.tuned for row in rows):
        lines.append(
            f"{', '.join(TRANSFER_ONLY)}: never used to choose a learned optimizer; "
            "baselines are tuned on its validation split."
        )
    if any(row.at_edge for row in rows):
        lines.append(
            "An asterisk: the best lr is the smallest or the largest that was tried."
        )
    for row in rows:
        name = f"{row.optimizer} on {row.problem}"
        if row.tuning:
            tried = [f"{lr:g}: {digits(loss)}" for lr, loss in row.tuning.items()]
            lines.append(f"Validation loss by lr, {name}: {', '.join(tried)}.")
        if row.diverged:
            lines.append(
                f"{name}: the loss of {row.diverged} of {row.runs} runs diverged."
            )
    return lines


def digits(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


@dataclass(frozen=True)
class Ranking:
    """Results of one optimizer over all problems.

    tuning_runs, tuning_seconds, diverged: in total.
    mean_rank: by test loss, among all optimizers.
    mean_equal_time_rank: by loss in the same seconds; None where it is not measured.
    mean_untuned_rank: among optimizers without tuning runs; None for the others.
    mean_excess, median_excess: test loss / test loss of the problem's best tuned
        optimizer - 1.
    reference_wins: problems with a loss below that of `REFERENCE`.
    rival_wins: problems with a loss below that of all `RIVALS`. Both are None where
        these were not run, and for themselves.
    steps_share: median over problems of the steps to the reference's final loss,
        divided by all steps; inf if it is not reached.
    step_time: median over problems of ms per step, divided by the reference's.
    """

    optimizer: str
    problems: int
    tuning_runs: int
    tuning_seconds: float
    mean_rank: float
    mean_equal_time_rank: float | None
    mean_untuned_rank: float | None
    mean_excess: float | None
    median_excess: float | None
    reference_wins: int | None
    rival_wins: int | None
    steps_share: float | None
    step_time: float | None
    diverged: int

    def cells(self) -> dict[str, str]:
        """The cells of a table by column."""
        wins = "{} of " + str(self.problems)
        share = _optional(self.steps_share, "{:.0%}")
        return {
            "optimizer": self.optimizer,
            "tuning runs": str(self.tuning_runs),
            "tuning min": f"{self.tuning_seconds / 60:.0f}",
            "mean rank": f"{self.mean_rank:.1f}",
            "in the same seconds": _optional(self.mean_equal_time_rank, "{:.1f}"),
            "mean rank, untuned": _optional(self.mean_untuned_rank, "{:.1f}"),
            "mean loss to best tuned": _optional(self.mean_excess, "{:+.1%}"),
            "median": _optional(self.median_excess, "{:+.1%}"),
            f"better than {REFERENCE}": _optional(self.reference_wins, wins),
            "better than Muon and SOAP": _optional(self.rival_wins, wins),
            f"steps to {REFERENCE}'s loss": share.replace("inf%", "never"),
            "step time to its": _optional(self.step_time, "{:.2f}x"),
            "diverged": str(self.diverged),
        }


def rank_optimizers(rows: Sequence[Row]) -> list[Ranking]:
    """One ranking per optimizer, sorted by mean rank."""
    table = _ranked(rows)
    problem = table["problem"]
    tuned_losses = table["test_loss"].where(table["tuned"])
    best_tuned = tuned_losses.groupby(problem).transform("min")
    table["excess"] = table["loss"] / best_tuned - 1
    reference = table[table["optimizer"] == REFERENCE].set_index("problem")
    table["step_time"] = table["ms_per_step"] / problem.map(reference["ms_per_step"])
    table["steps_share"] = table["reached"].astype(float).fillna(inf) / table["steps"]
    losses = table.pivot(index="problem", columns="optimizer", values="loss")
    rankings = []
    for key, results in table.groupby("optimizer", sort=False):
        name = str(key)
        is_tuned = any(results["tuned"])
        # whether the reference was run on all of its problems
        is_compared = results["problem"].isin(reference.index).all()
        excess = results["excess"].dropna()
        times = results["step_time"].dropna()
        equal_time = results["equal_time_rank"].dropna()
        ranking = Ranking(
            optimizer=name,
            problems=len(results),
            tuning_runs=sum(results["tuning_runs"]),
            tuning_seconds=sum(results["tuning_seconds"]),
            mean_rank=fmean(results["rank"]),
            mean_equal_time_rank=fmean(equal_time) if len(equal_time) else None,
            mean_untuned_rank=None if is_tuned else fmean(results["untuned_rank"]),
            mean_excess=fmean(excess) if len(excess) else None,
            median_excess=median(excess) if len(excess) else None,
            reference_wins=_wins(losses, name, [REFERENCE]),
            rival_wins=_wins(losses, name, list(RIVALS)),
            steps_share=median(results["steps_share"]) if is_compared else None,
            step_time=median(times) if len(times) else None,
            diverged=sum(results["diverged"]),
        )
        rankings.append(ranking)
    return sorted(rankings, key=lambda ranking: ranking.mean_rank)


def loss_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Test losses and ranks: one row per problem, one column per optimizer."""
    names = [row.optimizer for row in rows]
    table = []
    for problem, results in _ranked(rows).groupby("problem", sort=False):
        cells = {"problem": str(problem), **dict.fromkeys(names, "-")}
        for name, loss, rank in results[["optimizer", "test_loss", "rank"]].values:
            cells[name] = f"{digits(loss)} ({rank:g})"
        table.append(cells)
    return table


def ranks(rows: Sequence[Row]) -> list[float]:
    """The rank of each row among those of its problem.

    1 is the lowest test loss. Equal losses share the mean of their ranks; nan is last.
    """
    return _ranked(rows)["rank"].tolist()


def _ranked(rows: Sequence[Row]) -> Any:
    """A DataFrame of rows with `loss` (nan as inf), `rank`, `untuned_rank` and
    `equal_time_rank`, nan where there are no runs in the same seconds."""
    table = pd.DataFrame(map(vars, rows))
    table["tuned"] = [row.tuned for row in rows]
    table["loss"] = table["test_loss"].fillna(inf)
    table["rank"] = table.groupby("problem")["loss"].rank()
    timed = table[table["in_same_seconds"].notna()]
    same = [row.in_same_seconds.test_loss for row in rows if row.in_same_seconds]
    losses = pd.Series(same, timed.index, float).fillna(inf)
    table["equal_time_rank"] = losses.groupby(timed["problem"]).rank()
    untuned = table[~table["tuned"]]
    table["untuned_rank"] = untuned.groupby("problem")["loss"].rank()
    return table


def _wins(losses: Any, name: str, rivals: list[str]) -> int | None:
    """On how many problems a loss is below those of all rivals.

    losses: DataFrame of problems and optimizers.
    """
    of_problems = losses[losses[name].notna()]
    of_rivals = of_problems.reindex(columns=rivals)
    if name in rivals or of_rivals.isna().any(axis=None):
        return None
    return int((of_problems[name] < of_rivals.min(axis=1)).sum())


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
