"""The paper's Figure 3: `python -m meta_train.paper.figure3 --processes 2`.

Training loss and test accuracy on CIFAR-10 over the steps, mean and range over the
seeds, as `figure3.png` in its folder. The runs are those of `meta_train.paper.table2`;
finished runs in the same folder are not repeated. Prints the last points.
"""

from pathlib import Path
from statistics import fmean

from harness import cli
from harness.tables import text_table
from meta_train.comparison.inner_training import DEFAULT
from meta_train.comparison.leaderboard import compare
from meta_train.comparison.plots import plot_curves, training_curves
from meta_train.paper.table2 import Config

PROBLEM = "c10-32"


def run(config: Config) -> None:
    records = compare(config).records
    groups = {name: records[PROBLEM, name] for name in config.optimizers}
    path = Path(config.folder, "figure3.png")
    plot_curves(path, f"CIFAR-10, {config.seeds} seeds", groups, DEFAULT)
    table = []
    for name, records_of_name in groups.items():
        _, losses = training_curves(records_of_name)
        accuracy = fmean(100 * record["test"]["accuracy"] for record in records_of_name)
        row = {
            "optimizer": name,
            "last training loss": f"{losses[:, -1].mean():.3f}",
            "last test accuracy %": f"{accuracy:.2f}",
        }
        table.append(row)
    print(f"\n{text_table(table)}")
    print(f"\nThe curves are in {path}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
