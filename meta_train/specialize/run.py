"""Finds the best rule for a family of training runs, and measures what it gains.

Searches for the best default, Adam and Muon; learns rates by parameter and time on top
of the winner, then feedback; keeps the simplest that is best on unseen members; and
reports on others. Every part is on record, so that the same command resumes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from harness.files import make_folder, write_json
from harness.tables import markdown_table, text_table
from meta_train.specialize.evolution import KNOTS, PAIRS, Evolution
from meta_train.specialize.family import Family, HandRule, load_family, log_losses
from meta_train.specialize.hand_rules import KINDS, best_rule, runs_of_search
from meta_train.specialize.report import (
    Level,
    Losses,
    chosen,
    draw_rates,
    gain,
    measure,
    rows_of,
    steps_to,
)
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.tensor_files import atomic_write
from ngopt.soap.soap import Soap
from ngopt.specialized.rates import Rates
from ngopt.specialized.rule import Specialized

SAVE_SECONDS = 20.0  # between two states of the evolution on disk
SEARCH_MEMBERS = 12
GATE_SEEDS = range(2_000_000, 2_000_064)
TEST_SEEDS = range(3_000_000, 3_000_064)
SHARES = {"rates": 0.6, "feedback": 0.4}  # of the minutes of evolution
DEFAULT = "default"


@dataclass(frozen=True)
class Settings:
    """problem: see `load_family`. horizons: the shortest and the longest. minutes: of
    evolution; the search and the comparison take some more.

    Raises ValueError for horizons and minutes out of range.
    """

    problem: str
    horizons: tuple[int, int]
    minutes: float
    folder: Path

    def __post_init__(self) -> None:
        shortest, longest = self.horizons
        if not 5 <= shortest <= longest:
            raise ValueError(
                "specialize: expected horizons of 5 steps or more, the shortest first; "
                f"got {shortest}:{longest}"
            )
        if self.minutes <= 0:
            raise ValueError(
                f"specialize: expected minutes above 0; got {self.minutes:g}"
            )

    @property
    def measured_horizons(self) -> list[int]:
        """Shortest, middle and longest."""
        shortest, longest = self.horizons
        return sorted({shortest, round((shortest * longest) ** 0.5), longest})


class Journal:
    """What is done, in one file, written atomically.

    Raises ValueError if the file is of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path = path
        self.values: dict[str, Any] = {"settings": settings}
        if path.is_file():
            self.values = torch.load(path, weights_only=False)
        if self.values["settings"] != settings:
            raise ValueError(
                f"specialize: '{path}' is of {self.values['settings']}; expected "
                f"{settings}. Choose another --folder or delete it."
            )

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.values:
            self.put(key, make())
        return self.values[key]

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value
        with atomic_write(self._path) as part:
            torch.save(self.values, part)


def run(settings: Settings) -> Path | None:
    """Returns the path of the weights file; None if the default is best."""
    family = load_family(settings.problem)
    make_folder(settings.folder)
    key = {"problem": settings.problem, "horizons": settings.horizons}
    journal = Journal(settings.folder / "journal.pt", key)
    levels = searched(family, settings, journal)
    base = levels[-1]
    knots = None
    for stage in SHARES:
        evolution = evolved(family, base.rule, stage, knots, settings, journal)
        rates = evolution.result()
        knots = rates.knots
        levels.append(Level(f"{base.name}, {stage}", base.rule, rates))
    horizons = settings.measured_horizons
    gate = journal.once("gate", lambda: measure(levels, family, GATE_SEEDS, horizons))
    best = chosen(levels, gate)
    losses = journal.once("test", lambda: measure(levels, family, TEST_SEEDS, horizons))
    return write_report(family, levels, base, best, losses, settings, journal)


def searched(family: Family, settings: Settings, journal: Journal) -> list[Level]:
    """The default, and the tuned rules, the best of which comes last."""
    seeds = range(SEARCH_MEMBERS)

    def loss(rule: HandRule) -> float:
        values = [log_losses(family, seeds, rule, x) for x in settings.horizons]
        bar.update()
        return float(torch.stack(values).mean())

    with tqdm(total=runs_of_search(), unit="rule", desc="search") as bar:
        tuned = {}
        for kind in KINDS:
            tuned[kind] = journal.once(kind, lambda kind=kind: best_rule(kind, loss))
    order = sorted(tuned, key=lambda kind: -tuned[kind][1])
    return [Level(DEFAULT, Soap())] + [
        Level(f"{kind}, tuned", tuned[kind][0]) for kind in order
    ]


def evolved(
    family: Family,
    rule: HandRule,
    stage: str,
    knots: Tensor | None,
    settings: Settings,
    journal: Journal,
) -> Evolution:
    """Meta-training for its share of the minutes, from where it was left."""
    seconds = 60 * SHARES[stage] * settings.minutes
    evolution = Evolution.start(len(family.shapes), stage == "feedback", knots)
    spent = 0.0
    if stage in journal.values:
        spent = journal.values[stage]["seconds"]
        evolution = Evolution.from_state(journal.values[stage]["evolution"])
    writer = SummaryWriter(str(settings.folder))
    saved = time.monotonic()
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    done = min(spent, seconds)
    with tqdm(total=seconds, initial=done, desc=stage, bar_format=form) as bar:
        while spent < seconds:
            start = time.monotonic()
            loss = evolution.step(family, rule, settings.horizons, spent / seconds)
            now = time.monotonic()
            spent += now - start
            writer.add_scalar(f"{stage}/log_loss", loss, evolution.generation)
            bar.set_postfix(generation=evolution.generation, log_loss=f"{loss:.2f}")
            bar.update(min(now - start, seconds - bar.n))
            if now - saved > SAVE_SECONDS or spent >= seconds:
                state = {"seconds": spent, "evolution": evolution.state()}
                journal.put(stage, state)
                saved = now
    writer.close()
    return evolution


def write_report(
    family: Family,
    levels: Sequence[Level],
    base: Level,
    best: Level,
    losses: Losses,
    settings: Settings,
    journal: Journal,
) -> Path | None:
    """Prints and writes the table, and the weights file if the default is not best."""
    rows = rows_of(levels, losses, base.name)
    lines = [text_table(rows), ""]
    path = None
    if best.name == DEFAULT:
        lines.append(
            "None of these rules is better than the default on unseen members."
        )
    else:
        path = settings.folder / f"{family.name}.safetensors"
        mean, error = gain(losses, best.name, DEFAULT)
        table = {"members": len(TEST_SEEDS), "gain": mean, "error": error}
        rule = specialized(family, best, settings, table)
        save_pretrained(rule, path)
        names = [name for name, _ in family.member(0).model.named_parameters()]
        draw_rates(settings.folder / "rates.png", rule.rates, names)
        lines += [
            f"Best on {len(GATE_SEEDS)} other members: {best.name} ({rule.base_name}).",
            *savings(levels, base, best, losses, settings, journal),
            f"NGOptimizer(params, rule='{path}', total_steps=T), with T from "
            f"{settings.horizons[0]} to {settings.horizons[1]}.",
        ]
    print("\n".join(lines))
    (settings.folder / "report.md").write_text(
        markdown_table(rows) + "\n\n" + "\n".join(lines[2:]) + "\n"
    )
    write_json(settings.folder / "report.json", {"best": best.name, "rows": rows})
    return path


def specialized(
    family: Family, level: Level, settings: Settings, table: dict[str, Any]
) -> Specialized:
    """The rule of a level; without rates all factors are 1."""
    shapes = family.shapes
    rates = level.rates or Rates(torch.zeros(len(shapes), KNOTS))
    stage = {"problem": settings.problem, "minutes": settings.minutes}
    recipe = {"stages": [{**stage, "level": level.name}]}
    return Specialized(level.rule, rates, shapes, settings.horizons, recipe, table)


def savings(
    levels: Sequence[Level],
    base: Level,
    best: Level,
    losses: Losses,
    settings: Settings,
    journal: Journal,
) -> list[str]:
    """How many steps the best rule saves, and after how many runs that pays for the
    evolution."""
    longest = settings.horizons[1]
    target = float(losses[base.name][longest].mean())
    steps = steps_to(losses[best.name], target)
    if best.rates is None or steps is None or steps >= longest:
        return []
    generations = sum(
        journal.values[stage]["evolution"]["generation"] for stage in SHARES
    )
    shortest = settings.horizons[0]
    spent = (
        2 * PAIRS * generations * (longest - shortest) / math.log(longest / shortest)
    )
    at_most = "at most " if steps <= shortest else ""
    return [
        f"It has the loss of {base.name} at {longest} steps after {at_most}"
        f"{steps:.0f}: {spent / (longest - steps):,.0f} runs pay for the evolution."
    ]
