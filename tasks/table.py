"""Tables of the tasks:
`python -m tasks.table --table classify --data data/inr-mnist --folder runs/mnist`.

Trains every model of a table with the same data and the same minutes of a core, ours
with several seeds, and prints their results beside the published figures, which are of
other data. The same command continues where it stopped; `--processes 2` trains two
models at a time.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from harness import cli
from harness.distributed import process_group, run_on_ranks
from harness.files import read_json, write_json
from harness.settings import check_choice, check_counts, check_settings
from harness.tables import markdown_table, plus_minus, sample_deviation, text_table
from tasks.learning.task import TaskConfig, run_task
from tasks.learning.training import TrainingConfig
from tasks.shards import read_manifest
from tasks.table_rows import TABLES, Row

PUBLISHED = Path(__file__).with_name("published_figures.csv")


@dataclass(frozen=True)
class Config:
    """Settings of a table."""

    table: str
    """Name of the table."""
    data: str
    """Folder of networks."""
    folder: str
    """Where training runs and the table go."""
    minutes: float = 15.0
    """Budget of each training run, of a core."""
    batch: int = 32
    """Networks of a step."""
    trainer: str = "ngopt"
    """Optimizer of all models: ngopt or adamw."""
    compiled: bool = False
    """Compile the training steps of ours, where that is faster."""
    seeds: int = 3
    """Seeds of our models; baselines have one."""
    rows: tuple[str, ...] = ()
    """Labels of rows; none for all."""
    processes: int = 1
    """Training runs at the same time, of one thread each."""

    def __post_init__(self) -> None:
        check_choice("table", self.table, TABLES)
        check_counts(self, "seeds", "processes")
        labels = [row.label for row in TABLES[self.table].rows]
        unknown = [label for label in self.rows if label not in labels]
        if unknown:
            raise ValueError(
                f"rows: expected some of {'; '.join(labels)}; got {'; '.join(unknown)}"
            )


class Run(NamedTuple):
    """A training run of a row."""

    row: Row
    config: TaskConfig

    def result(self) -> dict[str, Any] | None:
        """The content of its `result.json`; None if it is not finished. Raises
        ValueError if that was made with other settings."""
        path = Path(self.config.folder, "result.json")
        if not path.exists():
            return None
        result = read_json(path, "result")
        # the folder may have been moved
        settings = {**asdict(self.config), "folder": result["config"]["folder"]}
        check_settings(f"result '{path}'", result["config"], settings)
        return result


def runs(config: Config) -> Iterator[Run]:
    """All training runs of a table, the first seeds first."""
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
                "compiled": config.compiled and row.is_ours,
                "training": training,
            }
            yield Run(row, table.settings(**{**settings, **row.changes}))


def train(config: Config) -> None:
    """This rank's share of the missing training runs; each is on one rank."""
    task = TABLES[config.table].task
    with process_group() as ranks:
        for number, run in enumerate(runs(config)):
            if ranks.owns(number) and run.result() is None:
                run_task(run.config, task)


def check(config: Config) -> None:
    """Makes a model of every row. Raises ValueError for data that one of them cannot
    read, before others train."""
    read_manifest(Path(config.data))
    for run in runs(replace(config, seeds=1)):
        if run.result() is None:
            TABLES[config.table].task(run.config)


def make_table(config: Config) -> None:
    check(config)
    run_on_ranks(config.processes, train, config, runs)
    report(config)


def report(config: Config) -> None:
    """Prints the table, and writes it and all results into the folder."""
    folder = Path(config.folder)
    results: dict[str, list[dict[str, Any]]] = {}
    for run in runs(config):
        result = run.result()
        if result is not None:
            results.setdefault(run.row.label, []).append(result)
    measured = {name for of_row in results.values() for name in of_row[0]["test"]}
    figures = {
        name: factor
        for name, factor in TABLES[config.table].figures.items()
        if name in measured
    }
    published = published_figures(config)
    rows = [
        cells(figures, label, of_row, published.get(label))
        for label, of_row in results.items()
    ]
    (folder / "table.md").write_text(f"{markdown_table(rows)}\n")
    write_json(folder / "table.json", results)
    print(text_table(rows))
    print(
        f"{config.minutes:g} minutes of a core each with {config.trainer}, on "
        f"{config.data}; published figures are of other data."
    )


def published_figures(config: Config) -> dict[str, float]:
    """The first figure of rows on data of the same name or zoo, where published.

    `published_figures.csv` has those of Kofinas et al. 2024 and Lim et al. 2024.
    """
    settings = read_manifest(Path(config.data))["settings"]
    data = settings.get("zoo", settings.get("data"))
    with PUBLISHED.open(newline="") as file:
        return {
            line["row"]: float(line["figure"])
            for line in csv.DictReader(file)
            if (line["table"], line["data"]) == (config.table, data)
        }


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
    cli.main(Config, make_table, __doc__)
