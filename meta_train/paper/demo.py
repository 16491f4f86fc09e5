"""Trains a small CNN on FashionMNIST with Adam, Muon and NGOptimizer:
`python -m meta_train.paper.demo`.

Adam and Muon have the learning rates that do best on validation data of this very
problem, and cosine schedules; NGOptimizer has nothing to tune. Writes `curves.png` and
`results.json` into its folder. Takes under three minutes on two cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from harness import cli
from harness.files import make_folder, write_json
from harness.tables import align
from meta_train.comparison.optimizers import load_optimizer
from meta_train.comparison.plots import plot_curves
from meta_train.comparison.runs import Record, Run, train
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet

PROBLEM = "fm-16"
# The best of each grid on this problem: python -m meta_train.comparison.leaderboard
# --problems fm-16
TUNED = {"Adam": ("adam-cosine", 0.04), "Muon": ("muon-cosine", 0.05)}
HEADER = ["optimizer", "test accuracy %", "train loss", "seconds", "optimizer ms/step"]


@dataclass(frozen=True)
class Config:
    """Settings of the demonstration."""

    steps: int = 1000
    """Updates per optimizer."""
    weights: str = "default"
    """Bundled weights, or a weights file, for NGOptimizer."""
    seed: int = 0
    folder: str = "runs/demo"
    metanet: str | None = None
    """module:Class of your own metanet, which is imported, where weights name one."""


def demo(config: Config) -> dict[str, Record]:
    """Trains with all three; their records, by the name that the table shows.

    Raises ValueError if there are no such weights.
    """
    if config.metanet is not None:
        find_metanet(config.metanet, METANETS, may_import=True)
    learned = load_optimizer(config.weights)
    size = (config.seed, config.steps, "evaluation", max(config.steps // 20, 1))
    runs = {
        f"{name} (tuned: lr {lr:g}, cosine)": Run(PROBLEM, optimizer, lr, None, *size)
        for name, (optimizer, lr) in TUNED.items()
    }
    label = "NGOptimizer (untuned)"
    if config.weights != "default":
        label = f"NGOptimizer ({config.weights})"
    runs[label] = Run(
        PROBLEM, learned.name, None, learned.weights, *size, traced=learned.traced
    )
    return {label: train_with_bar(label, run) for label, run in runs.items()}


def train_with_bar(label: str, run: Run) -> Record:
    with tqdm(total=run.steps, desc=label, unit="step") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        return train(run, show)


def cells(label: str, record: Record) -> list[str]:
    """A line of the table, under `HEADER`."""
    loss = record["train_loss"]
    return [
        label,
        f"{100 * record['test']['accuracy']:.2f}",
        "diverged" if loss is None else f"{loss:.4f}",
        f"{record['seconds']:.0f}",
        f"{record['optimizer_ms_per_step']:.2f}",
    ]


def run(config: Config) -> None:
    folder = Path(config.folder)
    make_folder(folder)
    records = demo(config)
    write_json(folder / "results.json", {"config": asdict(config), "records": records})
    picture = folder / "curves.png"
    groups = {label: [record] for label, record in records.items()}
    *_, ours = groups
    plot_curves(picture, f"{PROBLEM}, seed {config.seed}", groups, ours)
    print("\n".join(["", *align(HEADER, [cells(*item) for item in records.items()])]))
    print(f"\nThe loss and accuracy curves are in {picture}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
