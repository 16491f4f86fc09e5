"""Finds the best rule for a family of training runs, and measures what it gains.

Tunes the default, SOAP, Adam and Muon; learns rates by parameter and time on top
of the winner, then feedback; keeps the simplest that is best on unseen members; and
reports on others. The same command resumes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from harness.checkpoint import Checkpoint
from harness.errors import Interrupted
from harness.files import make_folder, write_json
from harness.tables import markdown_table, text_table
from meta_train.specialize.evolution import KNOTS, PAIRS, Evolution
from meta_train.specialize.family import Family, HandRule, load_family, log_losses
from meta_train.specialize.hand_rules import KINDS, rules_of_search, tuned
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
from ngopt.soap.soap import Soap
from ngopt.specialized.rates import Rates
from ngopt.specialized.storage import description_of

SEARCH_MEMBERS = 3, 12  # at least and at most
GATE_SEEDS = range(2_000_000, 2_000_064)
TEST_SEEDS = range(3_000_000, 3_000_064)
SHARES = {"rates": 0.6, "feedback": 0.4}  # of the evolution
FEW_GENERATIONS = 50  # rates need more
SAVE_SECONDS = 20.0  # between two states of the evolution on disk
DEFAULT = "default"


@dataclass(frozen=True)
class Settings:
    """problem: see `load_family`. horizons: the shortest and the longest. minutes: of
    search and evolution; the comparison takes some more.

    Raises ValueError for horizons and minutes out of range.
    """

    problem: str
    horizons: tuple[int, int]
    minutes: float
    folder: Path

    def __post_init__(self) -> None:
        shortest, longest = self.horizons
        if not 5 <= shortest <= longest or self.minutes <= 0:
            raise ValueError(
                "specialize: expected horizons of 5 steps or more, the shortest first, "
                f"and minutes > 0; got {shortest}:{longest}, {self.minutes:g} minutes"
            )


class Journal(dict[str, Any]):
    """What is done, in the checkpoint of the folder.

    Raises ValueError if the checkpoint is damaged or of other settings.
    """

    def __init__(self, settings: Settings, family: Family):
        key = {"problem": settings.problem, "horizons": settings.horizons}
        key |= {"shapes": family.shapes}
        self._checkpoint = Checkpoint(settings.folder, key, trusted=True)
        try:
            super().__init__(self._checkpoint.read() or {})
        except ValueError as error:
            raise ValueError(
                f"specialize: {error}. Choose another --folder, or delete it."
            ) from None

    def put(self, key: str, value: Any) -> Any:
        self[key] = value
        self._checkpoint.write(self)
        return value

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        return self[key] if key in self else self.put(key, make())


def run(settings: Settings) -> Path | None:
    """Returns the path of the weights file; None if the default is best.

    Raises Interrupted for Ctrl-C.
    """
    try:
        return _specialized(settings)
    except KeyboardInterrupt:
        raise Interrupted(
            f"the same command goes on from '{settings.folder}'"
        ) from None


def _specialized(settings: Settings) -> Path | None:
    family = load_family(settings.problem)
    make_folder(settings.folder)
    journal = Journal(settings, family)
    default, *tuned_rules = searched(family, settings, journal)
    base = tuned_rules[-1]
    learned: list[Level] = []
    name, knots = base.name, None
    for stage in SHARES:
        evolution = evolved(family, base.rule, stage, knots, settings, journal)
        result = partial(evolution.result, settings.horizons)
        knots = result().knots
        name = f"{name}, {stage}"
        learned.append(Level(name, base.rule, result))
    shortest, longest = settings.horizons
    horizons = sorted({shortest, round((shortest * longest) ** 0.5), longest})
    gated = [default, base, *learned]
    gate = journal.once("gate", lambda: measure(gated, family, GATE_SEEDS, horizons))
    best = chosen(gated, gate)
    levels = [default, *tuned_rules, *learned]
    losses = journal.once("test", lambda: measure(levels, family, TEST_SEEDS, horizons))
    rows = rows_of(losses, base.name)
    path, lines = None, ["None of these rules is better than the default."]
    if best.name != DEFAULT:
        path = settings.folder / f"{family.name}.safetensors"
        rates = learned_rates(family, best, settings, losses)
        save_pretrained(replace(best.rule, multiplier=rates), path)
        names = [name for name, _ in family.member(0).model.named_parameters()]
        if best.rates is not None:
            draw_rates(settings.folder / "rates.png", rates, names)
        lines = [
            f"Best on {len(GATE_SEEDS)} other members: {best.name}. The base rule is "
            f"{description_of(best.rule)}.",
            *savings(losses, base, best, settings, journal),
            f"NGOptimizer(params, rule='{path}', total_steps=T), with T from "
            f"{shortest} to {longest}.",
        ]
    generations = journal["rates"][0].generation
    if generations < FEW_GENERATIONS:
        lines.append(
            f"The evolution of rates made {generations} generations only; more "
            "--minutes may gain more."
        )
    text = "\n".join(lines)
    print(f"{text_table(rows)}\n\n{text}")
    report = f"{markdown_table(rows)}\n\n{text}\n"
    (settings.folder / "report.md").write_text(report)
    write_json(settings.folder / "report.json", {"best": best.name, "rows": rows})
    return path


def search_members(family: Family, settings: Settings) -> int:
    """How many members the search can train in half of the minutes; prints it."""
    least, most = SEARCH_MEMBERS
    start = time.monotonic()
    for steps in settings.horizons:
        log_losses(family, range(least), Soap(), steps)
    minutes = rules_of_search() * (time.monotonic() - start) / least / 60
    members = min(max(round(settings.minutes / 2 / minutes), least), most)
    print(
        f"The search trains {members} members with each of {rules_of_search()} rules, "
        f"which takes about {members * minutes:.0f} of {settings.minutes:g} minutes."
    )
    return members


def searched(family: Family, settings: Settings, journal: Journal) -> list[Level]:
    """The default, and the tuned rules, the best of which comes last."""
    members = journal.once("members", lambda: search_members(family, settings))

    def loss(rule: HandRule) -> float:
        values = [
            log_losses(family, range(members), rule, x) for x in settings.horizons
        ]
        bar.update()
        return float(torch.stack(values).mean())

    with tqdm(total=rules_of_search(), unit="rule", desc="search") as bar:
        for kind in KINDS:
            journal.once(kind, lambda kind=kind: tuned(kind, loss))
    order = sorted(KINDS, key=lambda kind: -journal[kind].loss)
    levels = [Level(f"{kind}, tuned", journal[kind].rule) for kind in order]
    return [Level(DEFAULT, Soap()), *levels]


def evolved(
    family: Family,
    rule: HandRule,
    stage: str,
    knots: Tensor | None,
    settings: Settings,
    journal: Journal,
) -> Evolution:
    """The evolution after its share of the minutes, from where it was left."""
    all_seconds = 60 * settings.minutes
    searched = sum(journal[kind].seconds for kind in KINDS)
    seconds = SHARES[stage] * max(all_seconds - searched, 0.1 * all_seconds)
    start = Evolution.start(len(family.shapes), stage == "feedback", knots)
    evolution, spent = journal.get(stage, (start, 0.0))
    writer = SummaryWriter(str(settings.folder))
    saved = time.monotonic()
    form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=round(seconds), desc=stage, bar_format=form) as bar:
        while spent < seconds:
            begin = time.monotonic()
            loss = evolution.step(family, rule, settings.horizons, spent / seconds)
            now = time.monotonic()
            spent += now - begin
            writer.add_scalar(f"{stage}/log_loss", loss, evolution.generation)
            bar.set_postfix(generation=evolution.generation, log_loss=f"{loss:.2f}")
            bar.update(min(round(spent), bar.total) - bar.n)
            if now - saved > SAVE_SECONDS or spent >= seconds:
                journal.put(stage, (evolution, spent))
                saved = now
    writer.close()
    return evolution


def learned_rates(
    family: Family, level: Level, settings: Settings, losses: Losses
) -> Rates:
    """The rates of a level; without them all factors are 1."""
    rates = Rates(torch.zeros(len(family.shapes), 2, KNOTS), settings.horizons)
    if level.rates is not None:
        rates = level.rates(1)
    recipe = {"problem": settings.problem, "minutes": settings.minutes}
    mean, error = gain(losses, level.name, DEFAULT)
    return replace(
        rates,
        shapes=family.shapes,
        recipe={"stages": [{**recipe, "level": level.name}]},
        table={"members": len(TEST_SEEDS), "nats_below_default": mean, "error": error},
    )


def savings(
    losses: Losses, base: Level, best: Level, settings: Settings, journal: Journal
) -> list[str]:
    """How many steps a rule saves, and after how many runs that pays for the search and
    the evolution."""
    shortest, longest = settings.horizons
    target = float(losses[base.name][longest].mean())
    steps = steps_to(losses[best.name], target)
    if best.rates is None or steps >= longest:
        return []
    generations = sum(journal[stage][0].generation for stage in SHARES)
    mean_steps = float(longest)  # of horizons that are uniform in their logarithms
    if shortest < longest:
        mean_steps = (longest - shortest) / math.log(longest / shortest)
    searched = rules_of_search() * journal["members"] * (shortest + longest)
    runs = (2 * PAIRS * generations * mean_steps + searched) / (longest - steps)
    at_most = "at most " if steps <= shortest else ""
    return [
        f"After {at_most}{steps:.0f} steps it has the loss of {base.name} after "
        f"{longest}; {runs:,.0f} runs pay for search and evolution."
    ]
