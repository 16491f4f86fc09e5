"""Ranks optimizers over several problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean, median
from typing import Any

import pandas as pd

from meta_train.comparison.report import Row, digits

REFERENCE = "adam-cosine"  # steps are counted until its final loss is reached
RIVALS = ("muon-cosine", "soap-cosine")


@dataclass(frozen=True)
class Ranking:
    """Results of one optimizer over all problems.

    tuning_runs, tuning_seconds, diverged: in total.
    mean_rank: by test loss, among all optimizers.
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
        cells = {"optimizer": self.optimizer}
        cells["tuning runs"] = str(self.tuning_runs)
        cells["tuning min"] = f"{self.tuning_seconds / 60:.0f}"
        cells["mean rank"] = f"{self.mean_rank:.1f}"
        cells["mean rank, untuned"] = _optional(self.mean_untuned_rank, "{:.1f}")
        cells["mean loss to best tuned"] = _optional(self.mean_excess, "{:+.1%}")
        cells["median"] = _optional(self.median_excess, "{:+.1%}")
        cells[f"better than {REFERENCE}"] = _optional(self.reference_wins, wins)
        cells["better than Muon and SOAP"] = _optional(self.rival_wins, wins)
        cells[f"steps to {REFERENCE}'s loss"] = "never" if share == "inf%" else share
        cells["step time to its"] = _optional(self.step_time, "{:.2f}x")
        cells["diverged"] = str(self.diverged)
        return cells


def rank_optimizers(rows: Sequence[Row]) -> list[Ranking]:
    """One ranking per optimizer, sorted by mean rank."""
    table = _ranked(rows)
    problem = table["problem"]
    tuned_losses = table["test_loss"].where(table["tuned"])
    best_tuned = tuned_losses.groupby(problem).transform("min")
    table["excess"] = table["loss"] / best_tuned - 1
    is_reference = table["optimizer"] == REFERENCE
    reference = table[is_reference].set_index("problem")
    reference_ms = problem.map(reference["ms_per_step"])
    table["step_time"] = table["ms_per_step"] / reference_ms
    reached = table["reached"].astype(float)
    table["steps_share"] = reached.fillna(inf) / table["steps"]
    losses = table.pivot(index="problem", columns="optimizer", values="loss")
    found = []
    for name, own in table.groupby("optimizer", sort=False):
        is_compared = own["problem"].isin(reference.index).all()
        found.append(_ranking(str(name), own, losses, is_compared))
    return sorted(found, key=lambda ranking: ranking.mean_rank)


def _ranking(name: str, own: Any, losses: Any, is_compared: bool) -> Ranking:
    """own: rows of the optimizer. losses: see `_wins`. is_compared: whether the
    reference was run on all of its problems."""
    is_tuned = any(own["tuned"])
    excess = own["excess"].dropna()
    times = own["step_time"].dropna()
    return Ranking(
        optimizer=name,
        problems=len(own),
        tuning_runs=sum(own["tuning_runs"]),
        tuning_seconds=sum(own["tuning_seconds"]),
        mean_rank=fmean(own["rank"]),
        mean_untuned_rank=None if is_tuned else fmean(own["untuned_rank"]),
        mean_excess=fmean(excess) if len(excess) else None,
        median_excess=median(excess) if len(excess) else None,
        reference_wins=_wins(losses, name, [REFERENCE]),
        rival_wins=_wins(losses, name, list(RIVALS)),
        steps_share=median(own["steps_share"]) if is_compared else None,
        step_time=median(times) if len(times) else None,
        diverged=sum(own["diverged"]),
    )


def loss_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Test losses and ranks: one row per problem, one column per optimizer."""
    names = [row.optimizer for row in rows]
    table = []
    for problem, own in _ranked(rows).groupby("problem", sort=False):
        cells = {"problem": str(problem), **dict.fromkeys(names, "-")}
        columns = own[["optimizer", "test_loss", "rank"]]
        for name, loss, rank in columns.values:
            cells[name] = f"{digits(loss)} ({rank:g})"
        table.append(cells)
    return table


def ranks(rows: Sequence[Row]) -> list[float]:
    """The rank of each row among those of its problem.

    1 is the lowest test loss. Equal losses share the mean of their ranks; nan is last.
    """
    return _ranked(rows)["rank"].tolist()


def _ranked(rows: Sequence[Row]) -> Any:
    """A DataFrame of rows with `loss` (nan as inf), `rank` and `untuned_rank`."""
    table = pd.DataFrame(map(vars, rows))
    table["tuned"] = [row.tuned for row in rows]
    table["loss"] = table["test_loss"].fillna(inf)
    by_problem = table.groupby("problem")
    table["rank"] = by_problem["loss"].rank()
    untuned = table[~table["tuned"]]
    by_problem = untuned.groupby("problem")
    table["untuned_rank"] = by_problem["loss"].rank()
    return table


def _wins(losses: Any, name: str, rivals: list[str]) -> int | None:
    """On how many problems a loss is below those of all rivals.

    losses: DataFrame of problems and optimizers.
    """
    own = losses[losses[name].notna()]
    theirs = own.reindex(columns=rivals)
    if name in rivals or theirs.isna().any(axis=None):
        return None
    best = theirs.min(axis=1)
    is_below = own[name] < best
    return int(is_below.sum())


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
