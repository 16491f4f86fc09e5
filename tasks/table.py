"""Tables of the tasks:
`python -m tasks.table --table classify --data data/inr-mnist --folder runs/mnist`.

Trains every model of a table with the same data and the same minutes of a core, ours
with several seeds, and prints what they found beside the published figures, which came
from other data. The same command goes on where it was stopped; `--processes 2` trains
two at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from harness import cli
from harness.distributed import Ranks, joined, on_ranks
from harness.files import read_json, write_json
from harness.pictures import draw_means
from harness.settings import check_counts, differences
from harness.tables import align, markdown
from tasks.learning.lesson import LessonConfig, learn_on
from tasks.learning.training import TrainingConfig
from tasks.shards import read_manifest
from tasks.table_rows import TABLES, Row, Table


@dataclass(frozen=True)
class Config:
    """Settings of a table."""

    table: str
    """Its name."""
    data: str
    """Folder of networks."""
    folder: str
    """Where trainings and the table go."""
    minutes: float = 15.0
    """Budget of each training, of a core."""
    batch: int = 32
    """Networks of a step."""
    trainer: str = "ngopt"
    """Of all models: ngopt or adamw."""
    compiled: bool = False
    """Compile the training steps of ours, where that is faster."""
    seeds: int = 3
    """Of our models; others have one."""
    skip_damaged: bool = False
    """Leave out shards that cannot be read, and say which, instead of ending."""
    rows: tuple[str, ...] = ()
    """Labels of rows, none for all."""
    processes: int = 1
    """Trainings at the same time, of one thread each."""

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(
                f"table: expected one of {', '.join(TABLES)}; got '{self.table}'"
            )
        check_counts(self, "seeds", "processes")
        labels = [row.label for row in TABLES[self.table].rows]
        odd = [label for label in self.rows if label not in labels]
        if odd:
            raise ValueError(
                f"rows: expected some of {'; '.join(labels)}; got {'; '.join(odd)}"
            )


class Training(NamedTuple):
    row: Row
    config: LessonConfig

    def result(self) -> dict[str, Any] | None:
        """What it wrote; None if it is not done.

        Raises ValueError if that is of other settings.
        """
        path = Path(self.config.folder, "result.json")
        if not path.exists():
            return None
        found = read_json(path, "result")
        # it may have been moved
        asked = {**asdict(self.config), "folder": found["config"]["folder"]}
        told = differences(found["config"], asked)
        if told:
            raise ValueError(f"result '{path}': made with other settings: {told}")
        return found


def trainings(config: Config) -> Iterator[Training]:
    """All that a table needs, the first seeds first."""
    table = TABLES[config.table]
    for seed in range(config.seeds):
        for row in table.rows:
            is_wanted = not config.rows or row.label in config.rows
            if not is_wanted or (seed and not row.is_ours):
                continue
            folder = Path(
                config.folder,
                f"{row.label.replace(', ', '-').replace(' ', '-')}-{seed}",
            )
            training = TrainingConfig(
                config.minutes, config.batch, config.trainer, seed=seed
            )
            common = {
                "data": config.data,
                "folder": str(folder),
                "skip_damaged": config.skip_damaged,
                "compiled": config.compiled and row.is_ours,
            }
            yield Training(row, table.config(row, training=training, **common))


def train(config: Config) -> None:
    """This rank's share of what is missing; each training is of one rank."""
    lesson = TABLES[config.table].lesson
    with joined() as ranks:
        for place, training in enumerate(trainings(config)):
            if ranks.owns(place) and training.result() is None:
                learn_on(Ranks(), training.config, lesson)


def check(config: Config) -> None:
    """Makes a model of every row: data that one cannot read are refused before others
    train.

    Raises ValueError.
    """
    read_manifest(Path(config.data))
    for training in trainings(replace(config, seeds=1)):
        if training.result() is None:
            TABLES[config.table].lesson(training.config, Ranks())


def run(config: Config) -> None:
    check(config)
    on_ranks(config.processes, train, config, trainings)
    report(config)


def report(config: Config) -> None:
    """Prints the table and writes it, and all results, into the folder."""
    table = TABLES[config.table]
    found = results(config)
    known = published(config, table)
    figures = shown(table, found)
    header = ["model", *figures, "published", "seeds", "parameters", "networks/s"]
    body = [
        line(figures, label, some, known.get(label)) for label, some in found.items()
    ]
    Path(config.folder, "table.md").write_text("\n".join(markdown(header, body)) + "\n")
    write_json(Path(config.folder, "table.json"), found)
    draw_curve(config, table, found)
    print("\n".join(align(header, body)))
    print(
        f"{config.minutes:g} minutes of a core each with {config.trainer}, on {config.data}; "
        f"published figures are of other data."
    )


def draw_curve(
    config: Config, table: Table, found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Draws `curve.png` into the folder, of rows that differ in the table's curve
    alone."""
    if table.curve is None:
        return
    setting, label = table.curve
    name, factor = next(iter(table.figures.items()))
    curves: dict[str, dict[float, list[float]]] = {}
    for row in table.rows:
        rest = dict(row.changes)
        place = rest.pop(setting, None)
        if place is None or row.label not in found:
            continue
        points = curves.setdefault(json.dumps(rest, sort_keys=True), {})
        points[place] = [factor * one["test"][name] for one in found[row.label]]
    if curves:
        path = Path(config.folder, "curve.png")
        draw_means(path, max(curves.values(), key=len), label, name)


def results(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Of every row what its trainings wrote, as far as they are done."""
    found: dict[str, list[dict[str, Any]]] = {}
    for training in trainings(config):
        result = training.result()
        if result is not None:
            found.setdefault(training.row.label, []).append(result)
    return found


def published(config: Config, table: Table) -> Mapping[str, float]:
    settings = read_manifest(Path(config.data))["settings"]
    return table.published.get(settings.get("zoo", settings.get("data")), {})


def shown(
    table: Table, found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Mapping[str, float]:
    """The table's figures that results on such data have."""
    told = {name for some in found.values() for name in some[0]["test"]}
    return {name: factor for name, factor in table.figures.items() if name in told}


def line(
    figures: Mapping[str, float],
    label: str,
    found: Sequence[Mapping[str, Any]],
    known: float | None,
) -> list[str]:
    """A row as text."""
    cells = [label]
    for figure, factor in figures.items():
        known_ones = [one["test"][figure] for one in found]
        if None in known_ones:
            cells.append("diverged")
            continue
        values = [factor * value for value in known_ones]
        spread = f" ± {stdev(values):.3g}" if len(values) > 1 else ""
        cells.append(f"{fmean(values):.4g}{spread}")
    speed = fmean(one["networks_per_second"] for one in found)
    cells += ["" if known is None else f"{known:g}", str(len(found))]
    return [*cells, str(found[0]["parameters"]), f"{speed:.0f}"]


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
