"""Tables of the tasks:
`python -m tasks.table --table classify --data data/inr-mnist --folder runs/mnist`.

Trains every model of a table with the same data and the same minutes of a core, ours
with several seeds, and prints what they found beside the published figures, which came
from other data. The same command goes on where it was stopped; `--processes 2` trains
two at a time.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from harness import cli
from harness.checkpoint import check_settings
from harness.distributed import Ranks, process_group, run_on_ranks
from harness.files import read_json, write_json
from harness.pictures import draw_means
from harness.settings import check_choice, check_counts
from harness.tables import markdown_table, plus_minus, sample_deviation, text_table
from tasks.learning.task import TaskConfig, run_task_on
from tasks.learning.training import TrainingConfig
from tasks.shards import read_manifest
from tasks.table_rows import TABLES, Row, Table

PUBLISHED = Path(__file__).with_name("published_figures.csv")


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
        check_choice("table", self.table, TABLES)
        check_counts(self, "seeds", "processes")
        labels = [row.label for row in TABLES[self.table].rows]
        odd = [label for label in self.rows if label not in labels]
        if odd:
            raise ValueError(
                f"rows: expected some of {'; '.join(labels)}; got {'; '.join(odd)}"
            )


class Training(NamedTuple):
    row: Row
    config: TaskConfig

    def result(self) -> dict[str, Any] | None:
        """The content of its `result.json`; None if it is not finished. Raises
        ValueError if that was made with other settings."""
        path = Path(self.config.folder, "result.json")
        if not path.exists():
            return None
        found = read_json(path, "result")
        # the folder may have been moved
        settings = {**asdict(self.config), "folder": found["config"]["folder"]}
        check_settings(f"result '{path}'", found["config"], settings)
        return found


def trainings(config: Config) -> Iterator[Training]:
    """All trainings of a table, the first seeds first."""
    table = TABLES[config.table]
    for seed in range(config.seeds):
        for row in table.rows:
            is_wanted = not config.rows or row.label in config.rows
            if not is_wanted or (seed and not row.is_ours):
                continue
            name = f"{row.label.replace(', ', '-').replace(' ', '-')}-{seed}"
            training = TrainingConfig(
                config.minutes, config.batch, config.trainer, seed=seed
            )
            settings = {
                "data": config.data,
                "folder": str(Path(config.folder, name)),
                "skip_damaged": config.skip_damaged,
                "compiled": config.compiled and row.is_ours,
                "training": training,
            }
            yield Training(row, table.settings(**{**settings, **row.changes}))


def train(config: Config) -> None:
    """This rank's share of what is missing; each training is of one rank."""
    task = TABLES[config.table].task
    with process_group() as ranks:
        for place, training in enumerate(trainings(config)):
            if ranks.owns(place) and training.result() is None:
                run_task_on(Ranks(), training.config, task)


def check(config: Config) -> None:
    """Makes a model of every row. Raises ValueError for data that one of them cannot
    read, before others train."""
    read_manifest(Path(config.data))
    for training in trainings(replace(config, seeds=1)):
        if training.result() is None:
            TABLES[config.table].task(training.config, Ranks())


def run(config: Config) -> None:
    check(config)
    run_on_ranks(config.processes, train, config, trainings)
    report(config)


def report(config: Config) -> None:
    """Prints the table, and writes it and all results into the folder."""
    table, folder = TABLES[config.table], Path(config.folder)
    results: dict[str, list[dict[str, Any]]] = {}
    for training in trainings(config):
        result = training.result()
        if result is not None:
            results.setdefault(training.row.label, []).append(result)
    published = published_figures(config)
    measured = set()
    for some in results.values():
        measured |= some[0]["test"].keys()
    figures = {key: value for key, value in table.figures.items() if key in measured}
    rows = []
    for label, some in results.items():
        rows.append(cells(figures, label, some, published.get(label)))
    (folder / "table.md").write_text(f"{markdown_table(rows)}\n")
    write_json(folder / "table.json", results)
    draw_curve(config, table, results)
    print(text_table(rows))
    print(
        f"{config.minutes:g} minutes of a core each with {config.trainer}, on "
        f"{config.data}; published figures are of other data."
    )


def draw_curve(
    config: Config, table: Table, found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Draws `curve.png`: the first figure over the setting of the table's curve.

    Only rows that differ in no other setting are drawn, without results that diverged.
    """
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
        values = []
        for one in found[row.label]:
            if one["test"][name] is not None:
                values.append(factor * one["test"][name])
        if values:
            points = curves.setdefault(json.dumps(rest, sort_keys=True), {})
            points[place] = values
    if curves:
        path = Path(config.folder, "curve.png")
        draw_means(path, max(curves.values(), key=len), label, name)


def published_figures(config: Config) -> dict[str, float]:
    """The first figure of rows on data of the same name or zoo, where published.

    `published_figures.csv` has those of Kofinas et al. 2024 and Lim et al. 2024.
    """
    settings = read_manifest(Path(config.data))["settings"]
    data = settings.get("zoo", settings.get("data"))
    found = {}
    with PUBLISHED.open(newline="") as file:
        for line in csv.DictReader(file):
            if (line["table"], line["data"]) == (config.table, data):
                found[line["row"]] = float(line["figure"])
    return found


def cells(
    figures: Mapping[str, float],
    label: str,
    results: Sequence[Mapping[str, Any]],
    published: float | None,
) -> dict[str, str]:
    """A row of the table by column. figures: factors by name."""
    row = {"model": label}
    for figure, factor in figures.items():
        values = [result["test"][figure] for result in results]
        if None in values:
            row[figure] = "diverged"
            continue
        scaled = [factor * value for value in values]
        deviation = f"{sample_deviation(scaled):.3g}"
        row[figure] = plus_minus(f"{fmean(scaled):.4g}", deviation, len(scaled))
    speed = fmean(result["networks_per_second"] for result in results)
    row["published"] = "" if published is None else f"{published:g}"
    row["seeds"] = str(len(results))
    row["parameters"] = str(results[0]["parameters"])
    row["networks/s"] = f"{speed:.0f}"
    return row


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
