"""How optimizers compare over several problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from statistics import fmean, median

from meta_train.comparison.report import Row, digits
from meta_train.comparison.runs import Record

REFERENCE = "adam-cosine"  # whose final loss is to be reached
RIVALS = ("muon-cosine", "soap-cosine")  # of which the better is to be beaten

HEADER = [
    "optimizer",
    "tuning runs",
    "tuning min",
    "mean rank",
    "mean rank, untuned",
    "mean loss to best tuned",
    "median",
    f"better than {REFERENCE}",
    "better than Muon and SOAP",
    f"steps to {REFERENCE}'s loss",
    "step time to its",
    "diverged",
]


@dataclass(frozen=True)
class Standing:
    """One optimizer over all problems.

    tuning_runs, tuning_seconds, diverged: in total.
    mean_rank: among all, by test loss; mean_untuned_rank: among those that tune
    nothing, else None. mean_excess, median_excess: test loss divided by that of the
    problem's best tuned row, less 1. reference_wins, rival_wins: problems on which the
    loss is below `REFERENCE`'s, and below all
        `RIVALS`'; None without them, and for themselves.
    steps_share: median over problems of steps to the reference's final loss, as a share
    of all
        steps; inf where it is not reached.
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


def standings(
    rows: Sequence[Row], reached: Mapping[tuple[str, str], float | None]
) -> list[Standing]:
    """One for each optimizer, the best mean rank first.

    reached: steps to the reference's final loss by problem and optimizer, from
        `steps_to_reference`.
    """
    problems = list(dict.fromkeys(row.problem for row in rows))
    fields = [
        _Field([row for row in rows if row.problem == problem]) for problem in problems
    ]
    names = dict.fromkeys(row.optimizer for row in rows)
    found = [_standing(name, fields, reached) for name in names]
    return sorted(found, key=lambda standing: standing.mean_rank)


def ranks(losses: Mapping[str, float]) -> dict[str, float]:
    """1 for the smallest loss; equals share the mean of their places, nan comes last."""
    values = {name: inf if isnan(loss) else loss for name, loss in losses.items()}
    places = {}
    for name, value in values.items():
        below = sum(other < value for other in values.values())
        equal = sum(other == value for other in values.values())
        places[name] = below + (equal + 1) / 2
    return places


def steps_to_reference(
    records: Sequence[Record], references: Sequence[Record]
) -> float | None:
    """Steps until the validation loss is as low as the reference's at its end.

    By the curves, whose losses are those of averaged weights where an optimizer has
    them. Runs are compared with the reference's of the same seed; the median over
    seeds, None if half of them never get there.
    """
    targets = {
        record["run"]["seed"]: record["curve"]["loss"][-1] for record in references
    }
    steps = median(
        _steps_to(record, targets.get(record["run"]["seed"])) for record in records
    )
    return None if steps == inf else steps


def cells(standing: Standing) -> list[str]:
    """A standing as text, under `HEADER`."""
    return [
        standing.optimizer,
        str(standing.tuning_runs),
        f"{standing.tuning_seconds / 60:.0f}",
        f"{standing.mean_rank:.1f}",
        _optional(standing.mean_untuned_rank, "{:.1f}"),
        _optional(standing.mean_excess, "{:+.1%}"),
        _optional(standing.median_excess, "{:+.1%}"),
        _optional(standing.reference_wins, "{}" + f" of {standing.problems}"),
        _optional(standing.rival_wins, "{}" + f" of {standing.problems}"),
        "never"
        if standing.steps_share == inf
        else _optional(standing.steps_share, "{:.0%}"),
        _optional(standing.step_time, "{:.2f}x"),
        str(standing.diverged),
    ]


def matrix(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table of test losses and ranks, one line a problem."""
    names = list(dict.fromkeys(row.optimizer for row in rows))
    body = []
    for problem in dict.fromkeys(row.problem for row in rows):
        found = _Field([row for row in rows if row.problem == problem])
        body.append([problem, *map(found.cell, names)])
    return ["problem", *names], body


class _Field:
    """All rows of one problem, and what each is compared with."""

    def __init__(self, rows: Sequence[Row]):
        self.rows = {row.optimizer: row for row in rows}
        self.losses = {row.optimizer: row.test_loss for row in rows}
        self.ranks = ranks(self.losses)
        self.untuned_ranks = ranks(
            {row.optimizer: row.test_loss for row in rows if not row.tuned}
        )
        tuned = [
            row.test_loss for row in rows if row.tuned and not isnan(row.test_loss)
        ]
        self.best_tuned = min(tuned, default=None)
        self.reference = self.rows.get(REFERENCE)

    def cell(self, name: str) -> str:
        """Loss and rank of an optimizer."""
        if name not in self.losses:
            return "-"
        return f"{digits(self.losses[name])} ({self.ranks[name]:g})"


def _standing(
    name: str, fields: Sequence[_Field], reached: Mapping[tuple[str, str], float | None]
) -> Standing:
    fields = [field for field in fields if name in field.rows]
    rows = [field.rows[name] for field in fields]
    tuned = any(row.tuned for row in rows)
    excesses = [
        (inf if isnan(row.test_loss) else row.test_loss) / field.best_tuned - 1
        for row, field in zip(rows, fields, strict=True)
        if field.best_tuned is not None
    ]
    return Standing(
        optimizer=name,
        problems=len(rows),
        tuning_runs=sum(row.tuning_runs for row in rows),
        tuning_seconds=sum(row.tuning_seconds for row in rows),
        mean_rank=fmean(field.ranks[name] for field in fields),
        mean_untuned_rank=None
        if tuned
        else fmean(field.untuned_ranks[name] for field in fields),
        mean_excess=fmean(excesses) if excesses else None,
        median_excess=median(excesses) if excesses else None,
        reference_wins=_wins(name, fields, (REFERENCE,)),
        rival_wins=_wins(name, fields, RIVALS),
        steps_share=_steps_share(rows, fields, reached),
        step_time=_step_time(rows, fields),
        diverged=sum(row.diverged for row in rows),
    )


def _wins(name: str, fields: Sequence[_Field], rivals: Sequence[str]) -> int | None:
    """On how many problems the loss is below those of all rivals; a rival's nan is
    beaten."""
    if name in rivals or not all(
        rival in field.losses for field in fields for rival in rivals
    ):
        return None
    wins = 0
    for field in fields:
        theirs = [
            field.losses[rival] for rival in rivals if not isnan(field.losses[rival])
        ]
        wins += field.losses[name] < min(theirs, default=inf)
    return wins


def _steps_share(
    rows: Sequence[Row],
    fields: Sequence[_Field],
    reached: Mapping[tuple[str, str], float | None],
) -> float | None:
    if not all(field.reference for field in fields):
        return None
    shares = []
    for row in rows:
        steps = reached[row.problem, row.optimizer]
        shares.append(inf if steps is None else steps / row.steps)
    return median(shares)


def _step_time(rows: Sequence[Row], fields: Sequence[_Field]) -> float | None:
    times = [
        row.ms_per_step / field.reference.ms_per_step
        for row, field in zip(rows, fields, strict=True)
        if field.reference is not None
    ]
    return median(times) if times else None


def _steps_to(record: Record, target: float | None) -> float:
    """Where the validation curve first comes down to the target, between its points in
    line.

    inf if it never does, or if there is no target.
    """
    if target is None:
        return inf
    steps = record["curve"]["steps"]
    losses = record["curve"]["loss"]
    for number, loss in enumerate(losses):
        if loss is None or loss > target:
            continue
        if number == 0 or losses[number - 1] is None:
            return float(steps[number])
        before = losses[number - 1]
        share = (before - target) / (before - loss)
        return steps[number - 1] + share * (steps[number] - steps[number - 1])
    return inf


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
