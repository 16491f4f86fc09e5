"""Trains a small CNN on FashionMNIST with Adam, Muon and NGOptimizer:
`python -m meta_train.paper.demo`.

Adam and Muon have the learning rates that do best on validation data of this very
problem, and cosine schedules; NGOptimizer has nothing to tune. Writes `curves.png` and
`results.json` into its folder. Takes under three minutes on two cores.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from harness import cli
from harness.files import make_folder, write_json
from harness.tables import text_table
from meta_train.comparison.inner_training import DEFAULT, Record, Run, train
from meta_train.comparison.optimizers import load_optimizer
from meta_train.comparison.plots import plot_curves

PROBLEM = "fm-16"
# The best of each grid on this problem: python -m meta_train.comparison.leaderboard
# --problems fm-16
TUNED = {"Adam": ("adam-cosine", 0.04), "Muon": ("muon-cosine", 0.05)}


@dataclass(frozen=True)
class Config:
    """Settings of the demonstration."""

    steps: int = 1000
    """Updates per optimizer."""
    seed: int = 0
    folder: str = "runs/demo"


def demo(config: Config) -> dict[str, Record]:
    """Trains with all three optimizers. Returns their records by label."""
    size = (config.seed, config.steps, "evaluation", max(config.steps // 20, 1))
    runs = {}
    for name, (optimizer, lr) in TUNED.items():
        label = f"{name} (tuned: lr {lr:g}, cosine)"
        runs[label] = Run(PROBLEM, optimizer, lr, None, *size)
    weights = load_optimizer(DEFAULT).weights
    runs["NGOptimizer (untuned)"] = Run(PROBLEM, DEFAULT, None, weights, *size)
    return {label: train_with_bar(label, run) for label, run in runs.items()}


def train_with_bar(label: str, run: Run) -> Record:
    with tqdm(total=run.steps, desc=label, unit="step") as bar:

        def show(loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        return train(run, show)


def cells(label: str, record: Record) -> dict[str, str]:
    """A row of the table by column."""
    loss = record["train_loss"]
    return {
        "optimizer": label,
        "test accuracy %": f"{100 * record['test']['accuracy']:.2f}",
        "train loss": "diverged" if loss is None else f"{loss:.4f}",
        "seconds": f"{record['seconds']:.0f}",
        "optimizer ms/step": f"{record['optimizer_ms_per_step']:.2f}",
    }


def run(config: Config) -> None:
    folder = Path(config.folder)
    make_folder(folder)
    records = demo(config)
    write_json(folder / "results.json", {"config": asdict(config), "records": records})
    picture = folder / "curves.png"
    groups = {label: [record] for label, record in records.items()}
    *_, ours = groups
    plot_curves(picture, f"{PROBLEM}, seed {config.seed}", groups, ours)
    print(f"\n{text_table([cells(*item) for item in records.items()])}")
    print(f"\nThe loss and accuracy curves are in {picture}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
