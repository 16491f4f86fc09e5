"""What it costs to look at the graph only every k steps:
`python -m meta_train.selection.graph_every --weights ng-gnn`.

Trains whole runs with the same weights and each k. Chosen is the largest k whose mean
validation accuracy on the first problem is at most one standard error, that of k = 1,
below that of k = 1; other problems choose nothing. Prints a table and writes into its
folder: `table.md`, `results.json`, `graph_every.png`, the chosen weights as
`chosen.safetensors`, and records, from which the same command goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from harness import cli
from harness.files import make_folder, write_json
from harness.tables import align, markdown
from meta_train.comparison.report import deviation, spread, summarize
from meta_train.comparison.runs import Record, Run, execute, runs_of
from meta_train.training.rules import trained_metanet
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet
from ngopt.pretrained import load_pretrained, save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

HEADER = ["problem", "k", "validation accuracy %", "test accuracy %"]


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    weights: str = "ng-gnn"
    """A bundled name or a weights file."""
    problems: tuple[str, ...] = ("fm-16", "c10-32")
    """The first one chooses; all need an accuracy."""
    every: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Values of k; 1 among them."""
    seeds: int = 5
    folder: str = "runs/graph_every"
    processes: int = 1
    metanet: str | None = None
    """module:Class of your own metanet, which is imported, where weights name one."""

    def __post_init__(self) -> None:
        if 1 not in self.every:
            raise ValueError(
                f"every: expected 1 among the values, to compare with; got {self.every}"
            )


Found = dict[str, dict[int, list[Record]]]
"""Records by problem and k."""


def run(config: Config) -> None:
    folder = Path(config.folder)
    if config.metanet is not None:
        find_metanet(config.metanet, METANETS, may_import=True)
    learned = load_pretrained(config.weights)
    if not trained_metanet(learned).d_context:
        raise ValueError(
            f"weights '{config.weights}': expected a metanet that sees the graph; got "
            f"'{trained_metanet(learned).name}'"
        )
    make_folder(folder)
    found = measure(config, learned, folder)
    best = chosen(found[config.problems[0]])
    stage = {
        "program": "meta_train.selection.graph_every",
        **asdict(config),
        "chosen": best,
    }
    recipe = {"stages": [*learned.recipe["stages"], stage]}
    table = {
        **learned.table,
        **{problem: _measured(by_k[best]) for problem, by_k in found.items()},
    }
    new = replace(looking_every(learned, best), recipe=recipe, table=table)
    save_pretrained(new, folder / "chosen.safetensors")
    body = [
        _cells(problem, k, records)
        for problem, by_k in found.items()
        for k, records in by_k.items()
    ]
    results = {
        "config": asdict(config),
        "chosen": best,
        "rows": [dict(zip(HEADER, row, strict=True)) for row in body],
    }
    write_json(folder / "results.json", results)
    (folder / "table.md").write_text("\n".join(markdown(HEADER, body)) + "\n")
    draw(folder / "graph_every.png", found)
    print("\n".join(align(HEADER, body)))
    print(f"k = {best} -> {folder / 'chosen.safetensors'}")


def looking_every(learned: LearnedOptimizer, k: int) -> LearnedOptimizer:
    """The same with a metanet that looks at the graph every k steps."""
    return replace(
        learned, metanet=trained_metanet(learned).reconfigured(graph_every=k)
    )


def measure(config: Config, learned: LearnedOptimizer, folder: Path) -> Found:
    """Records of whole runs."""
    runs: list[Run] = []
    for k in config.every:
        path = folder / f"every-{k}.safetensors"
        own = looking_every(learned, k)
        runs += runs_of(own, path, config.problems, range(config.seeds), "evaluation")
    with tqdm(total=len(runs), unit="run") as bar:
        records = iter(execute(runs, folder / "records", config.processes, bar))
    found: Found = {problem: {} for problem in config.problems}
    for k in config.every:
        for problem in config.problems:
            found[problem][k] = [next(records) for _ in range(config.seeds)]
    return found


def chosen(by_k: Mapping[int, Sequence[Record]]) -> int:
    """The largest k that costs no more than one standard error of validation accuracy."""
    values = {k: accuracies(records, "validation") for k, records in by_k.items()}
    error = stdev(values[1]) / sqrt(len(values[1])) if len(values[1]) > 1 else 0.0
    return max(
        k for k, some in values.items() if fmean(some) >= fmean(values[1]) - error
    )


def accuracies(records: Sequence[Record], split: str) -> list[float]:
    """Of each run, per cent. Raises ValueError if a problem has none."""
    odd = [r["run"]["problem"] for r in records if r[split]["accuracy"] is None]
    if odd:
        raise ValueError(f"problems: expected an accuracy; '{odd[0]}' has none")
    return [100 * record[split]["accuracy"] for record in records]


def _measured(records: Sequence[Record]) -> dict[str, Any]:
    """What the table of a weights file says of a problem."""
    row = summarize(records)
    return {
        "test_accuracy_mean": row.accuracy_mean,
        "test_accuracy_std": row.accuracy_std,
        "seeds": row.runs,
        "steps": row.steps,
        "train_loss": row.train_loss,
    }


def _cells(problem: str, k: int, records: Sequence[Record]) -> list[str]:
    splits = [accuracies(records, split) for split in ("validation", "test")]
    return [problem, str(k), *map(_mean_and_deviation, splits)]


def _mean_and_deviation(values: Sequence[float]) -> str:
    return spread(f"{fmean(values):.2f}", f"{deviation(values):.2f}", len(values))


def draw(path: Path, found: Found) -> None:
    """Test accuracy over k, a panel for each problem: mean and every run."""
    figure = Figure(figsize=(5 * len(found), 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (problem, by_k) in zip(panels, found.items(), strict=True):
        values = {k: accuracies(records, "test") for k, records in by_k.items()}
        for k, some in values.items():
            axes.plot([k] * len(some), some, "o", color="tab:blue", alpha=0.35)
        axes.plot(
            list(values), [fmean(some) for some in values.values()], "-", color="black"
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(values), [str(k) for k in values])
        axes.set_title(problem)
        axes.set_xlabel("steps between two looks at the graph, k")
        axes.set_ylabel("test accuracy, %")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
