"""Compares the default with tuned optimizers:
`python -m meta_train.comparison.situations`.

Reads the `results.json` of comparisons (`meta_train.comparison.leaderboard`) of
`default` with `adamw-wide`, `adam-cosine-wide` and `muon-wide`, prints a table with the
worst problem first, and writes it as `situations.md`. Losses are means over seeds, on
test data. `to AdamW` compares the default with the best of AdamW and Adam, each with a
cosine and the best of eleven learning rates. Adversarial games also have Adam with
beta1 = .5. `default:open` and `default:scheduled` are summarized in a sentence each if
they were run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from harness import cli
from harness.files import or_inf
from harness.tables import markdown_table, text_table

OURS = "default"
MUON = "muon-wide"
ADAMS = ("adamw-wide", "adam-cosine-wide")
VARIANTS = {
    "default:open": "without total_steps, weights averaged at the end",
    "default:scheduled": "with a linear scheduler in place of total_steps",
}
OTHER_ADAMS = "adam-wide", "adam-games"  # where they were run
LEVEL, FAR = 0.02, 0.1  # of the loss: as good as the other; much worse


@dataclass(frozen=True)
class Config:
    """What is read, and where the table is written."""

    results: tuple[str, ...] = (
        "results/situations/development.json",
        "results/situations/validation.json",
        "results/situations/test.json",
        "results/situations/long.json",
        "results/situations/real.json",
    )
    """`results.json` of comparisons."""
    output: str = "results/situations/situations.md"


Row = dict[str, Any]
"""One of the table in `results.json`: results of an optimizer on a problem."""


class Situation(NamedTuple):
    """Rows of one problem. adam: the best of AdamW and Adam."""

    problem: str
    ours: Row
    adam: Row
    muon: Row

    @property
    def excess(self) -> float:
        """The default's loss / AdamW's - 1; inf where it is not finite."""
        ours = _loss(self.ours)
        return ours / _loss(self.adam) - 1 if isfinite(ours) else float("inf")

    def cells(self) -> dict[str, str]:
        ours, muon = _loss(self.ours), _loss(self.muon)
        return {
            "problem": self.problem,
            "steps": str(self.ours["steps"]),
            "default": f"{ours:.4g}",
            "AdamW or Adam, tuned": f"{_loss(self.adam):.4g}",
            "AdamW lr": f"{self.adam['lr']:g}",
            "Muon, tuned": f"{muon:.4g}",
            "Muon lr": f"{self.muon['lr']:g}",
            "to AdamW": f"{100 * self.excess:+.1f} %",
            "to Muon": f"{100 * ours / muon - 100:+.1f} %",
        }


def situations(table: Sequence[Row], ours_name: str = OURS) -> list[Situation]:
    """The results of a comparison by problem, the largest excess first.

    Raises ValueError if one of the optimizers is missing for a problem.
    """
    problems: dict[str, dict[str, Row]] = {}
    for row in table:
        problems.setdefault(row["problem"], {})[row["optimizer"]] = row
    compared = []
    for problem, rows in problems.items():
        missing = {ours_name, MUON, *ADAMS} - rows.keys()
        if missing:
            raise ValueError(
                f"{problem}: expected rows of {ours_name}, {MUON} and "
                f"{', '.join(ADAMS)}; got none of {', '.join(sorted(missing))}. "
                "Run meta_train.comparison.leaderboard on them."
            )
        adams = [rows[name] for name in (*ADAMS, *OTHER_ADAMS) if name in rows]
        adam = min(adams, key=_loss)
        compared.append(Situation(problem, rows[ours_name], adam, rows[MUON]))
    return sorted(compared, key=lambda situation: -situation.excess)


def _loss(row: Row) -> float:
    return or_inf(row["test_loss"])


def summary(compared: Sequence[Situation]) -> str:
    """How many problems there are of each kind, in a sentence."""
    better = sum(situation.excess < 0 for situation in compared)
    level = sum(situation.excess <= LEVEL for situation in compared)
    far = sum(situation.excess > FAR for situation in compared)
    ahead = sum(_loss(each.ours) < _loss(each.muon) for each in compared)
    return (
        f"{len(compared)} problems: {better} better than the tuned AdamW, {level} "
        f"better or within {100 * LEVEL:.0f} %, {far} more than {100 * FAR:.0f} % "
        f"worse; {ahead} better than the tuned Muon."
    )


def run(config: Config) -> None:
    parts = []
    for path in map(Path, config.results):
        table = json.loads(path.read_text())["table"]
        compared = situations(table)
        title = f"{path.stem}: {summary(compared)}\n\n"
        for name in sorted(VARIANTS.keys() & {row["optimizer"] for row in table}):
            title += f"{VARIANTS[name]}: {summary(situations(table, name))}\n\n"
        cells = [situation.cells() for situation in compared]
        print(f"{title}{text_table(cells)}\n")
        parts.append(f"{title}{markdown_table(cells)}\n")
    Path(config.output).write_text("\n".join(parts))
    print(f"The tables are in {config.output}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
