"""How the default does beside tuned optimizers:
`python -m meta_train.comparison.situations`.

Reads the `results.json` of comparisons (`meta_train.comparison.leaderboard`) of
`default` with `adamw-wide`, `adam-cosine-wide` and `muon-wide`, prints a table with the
worst problem first, and writes it as `situations.md`. Losses are means over seeds, on
test data; `to AdamW` is the default's beside that of the best of AdamW and Adam, with a
cosine and the best of eleven learning rates (of adversarial games also Adam with beta1
= .5). Where `default:open` and `default:scheduled` were run, too, a sentence each says
how they did.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from harness import cli
from harness.tables import align, markdown

OURS, MUON, ADAMS = "default", "muon-wide", ("adamw-wide", "adam-cosine-wide")
UNTOLD = {
    "default:open": "without total_steps, weights averaged at the end",
    "default:scheduled": "with a linear scheduler in place of total_steps",
}
OTHER_ADAMS = "adam-wide", "adam-games"  # where they were run
LEVEL, FAR = 0.02, 0.1  # of the loss: as good as the other; much worse
HEADER = ["problem", "steps", "default", "AdamW or Adam, tuned", "lr", "Muon, tuned"]
HEADER += ["lr", "to AdamW", "to Muon"]


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


class Situation(NamedTuple):
    """One problem: losses, and the learning rates of those that are tuned."""

    problem: str
    steps: int
    ours: float
    adam: float
    adam_lr: float
    muon: float
    muon_lr: float

    @property
    def excess(self) -> float:
        """Of the default's loss over AdamW's; infinite where it is not finite."""
        return self.ours / self.adam - 1 if isfinite(self.ours) else float("inf")

    def cells(self) -> list[str]:
        losses = f"{self.ours:.4g}", f"{self.adam:.4g}", f"{self.muon:.4g}"
        lrs = f"{self.adam_lr:g}", f"{self.muon_lr:g}"
        beside = (
            f"{100 * self.excess:+.1f} %",
            f"{100 * self.ours / self.muon - 100:+.1f} %",
        )
        cells = losses[0], losses[1], lrs[0], losses[2], lrs[1], *beside
        return [self.problem, str(self.steps), *cells]


def situations(
    table: Sequence[dict[str, Any]], ours_name: str = OURS
) -> list[Situation]:
    """Of the rows of a comparison.

    Raises ValueError if one of the optimizers is missing for a problem.
    """
    found = []
    for problem in dict.fromkeys(row["problem"] for row in table):
        own = {row["optimizer"]: row for row in table if row["problem"] == problem}
        missing = {ours_name, MUON, *ADAMS} - own.keys()
        if missing:
            raise ValueError(
                f"{problem}: expected rows of {ours_name}, {MUON} and {', '.join(ADAMS)}; got "
                f"none of {', '.join(sorted(missing))}: run meta_train.comparison.leaderboard on them"
            )
        adams = [own[name] for name in (*ADAMS, *OTHER_ADAMS) if name in own]
        adam = min(adams, key=_loss)
        ours, muon = own[ours_name], own[MUON]
        losses = _loss(ours), _loss(adam), adam["lr"], _loss(muon), muon["lr"]
        found.append(Situation(problem, ours["steps"], *losses))
    return sorted(found, key=lambda one: -one.excess)


def _loss(row: dict[str, Any]) -> float:
    loss = row["test_loss"]
    return float("inf") if loss is None else loss


def summary(found: Sequence[Situation]) -> str:
    """A sentence of how many there are of each kind."""
    level = sum(one.excess <= LEVEL for one in found)
    better = sum(one.excess < 0 for one in found)
    far = sum(one.excess > FAR for one in found)
    ahead = sum(one.ours < one.muon for one in found)
    return (
        f"{len(found)} problems: {better} better than the tuned AdamW, {level} better or "
        f"within {100 * LEVEL:.0f} %, {far} more than {100 * FAR:.0f} % worse; {ahead} "
        "better than the tuned Muon."
    )


def run(config: Config) -> None:
    lines = []
    for path in map(Path, config.results):
        table = json.loads(path.read_text())["table"]
        found = situations(table)
        body = [one.cells() for one in found]
        title = [f"{path.stem}: {summary(found)}", ""]
        run_too = {row["optimizer"] for row in table}.intersection(UNTOLD)
        for name in sorted(run_too):
            title += [f"{UNTOLD[name]}: {summary(situations(table, name))}", ""]
        print("\n".join([*title, *align(HEADER, body), ""]))
        lines += [*title, *markdown(HEADER, body), ""]
    Path(config.output).write_text("\n".join(lines))
    print(f"The tables are in {config.output}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
