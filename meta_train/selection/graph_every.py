"""Chooses k, the steps between computations of the graph context:
`python -m meta_train.selection.graph_every --weights ng-gnn`.

Trains whole runs with the same weights and each k. The first problem chooses the
largest k whose mean validation accuracy is at most one standard error below that of
k = 1. Prints a table and writes into its folder: `table.md`, `results.json`,
`<problem>.png`, the chosen weights as `chosen.safetensors`, and records, from which the
same command resumes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure

from harness import cli
from harness.files import write_json
from harness.tables import markdown_table, plus_minus, sample_deviation, text_table
from meta_train.comparison.inner_training import Record
from meta_train.comparison.optimizers import load_learned
from meta_train.comparison.report import summarize
from meta_train.comparison.runs import file_name
from meta_train.selection.base_rules import whole_runs
from meta_train.training.weights import with_stage
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


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


Records = dict[str, dict[int, list[Record]]]
"""Records by problem and k."""


def run(config: Config) -> None:
    folder = Path(config.folder)
    learned = load_learned(config.weights, config.metanet)
    if not learned.metanet.d_context:
        raise ValueError(
            f"weights '{config.weights}': expected a metanet with graph context; "
            f"got '{learned.metanet.name}'"
        )
    variants = {}
    for k in config.every:
        metanet = learned.metanet.reconfigured(graph_every=k)
        variants[k] = replace(learned, metanet=metanet)
    records = train_all(config, variants, folder)
    best = choose_k(records[config.problems[0]])
    details = {**asdict(config), "chosen": best}
    chosen = with_stage(variants[best], "meta_train.selection.graph_every", details)
    results = dict(learned.table)
    table = []
    for problem, by_k in records.items():
        row = summarize(by_k[best])
        results[problem] = {
            "test_accuracy_mean": row.accuracy_mean,
            "test_accuracy_std": row.accuracy_std,
            "seeds": row.runs,
            "steps": row.steps,
            "train_loss": row.train_loss,
        }
        table += [_cells(problem, k, of_k) for k, of_k in by_k.items()]
        draw_accuracies(folder / f"{file_name(problem)}.png", by_k)
    save_pretrained(replace(chosen, table=results), folder / "chosen.safetensors")
    results = {"config": asdict(config), "chosen": best, "rows": table}
    write_json(folder / "results.json", results)
    (folder / "table.md").write_text(f"{markdown_table(table)}\n")
    print(text_table(table))
    print(f"k = {best} -> {folder / 'chosen.safetensors'}")


def train_all(
    config: Config, variants: Mapping[int, LearnedOptimizer], folder: Path
) -> Records:
    """Records of whole runs with each k. variants: the same weights, by k."""
    seeds = tuple(range(config.seeds))
    of_variants = whole_runs(
        {f"every-{k}": learned for k, learned in variants.items()},
        config.problems,
        seeds,
        folder,
        config.processes,
        "evaluation",
    )
    records: Records = {problem: {} for problem in config.problems}
    for k, of_k in zip(variants, of_variants.values(), strict=True):
        for record in of_k:
            records[record["run"]["problem"]].setdefault(k, []).append(record)
    return records


def choose_k(by_k: Mapping[int, Sequence[Record]]) -> int:
    """The largest k that costs at most one standard error of validation accuracy."""
    validation = {k: accuracies(records, "validation") for k, records in by_k.items()}
    of_one = validation[1]
    error = stdev(of_one) / sqrt(len(of_one)) if len(of_one) > 1 else 0.0
    least = fmean(of_one) - error
    return max(k for k, of_k in validation.items() if fmean(of_k) >= least)


def accuracies(records: Sequence[Record], split: str) -> list[float]:
    """The accuracy of each run, per cent. Raises ValueError if a problem has none."""
    percentages = []
    for record in records:
        accuracy = record[split]["accuracy"]
        if accuracy is None:
            problem = record["run"]["problem"]
            raise ValueError(
                f"problems: expected ones with an accuracy; got '{problem}'"
            )
        percentages.append(100 * accuracy)
    return percentages


def draw_accuracies(path: Path, by_k: Mapping[int, Sequence[Record]]) -> None:
    """Draws means and sample deviations of the test accuracy over k."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    ks = sorted(by_k)
    values = [accuracies(by_k[k], "test") for k in ks]
    deviations = [stdev(of_k) if len(of_k) > 1 else 0.0 for of_k in values]
    axes.errorbar(ks, list(map(fmean, values)), deviations, marker="o", capsize=3)
    axes.set(xlabel="steps between graph contexts, k", ylabel="test accuracy, %")
    axes.set_xscale("log")
    axes.set_xticks(ks, [f"{k:,g}" for k in ks])
    axes.minorticks_off()
    figure.savefig(path, dpi=150)


def _cells(problem: str, k: int, records: Sequence[Record]) -> dict[str, str]:
    row = {"problem": problem, "k": str(k)}
    for split in ("validation", "test"):
        percentages = accuracies(records, split)
        mean = f"{fmean(percentages):.2f}"
        deviation = f"{sample_deviation(percentages):.2f}"
        row[f"{split} accuracy %"] = plus_minus(mean, deviation, len(percentages))
    return row


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
