"""The paper's Table 2, with our and the published numbers:
`python -m meta_train.paper.table2 --processes 2`.

Test accuracy of two small CNNs after 1,000 steps, mean and sample deviation over the
seeds. Baselines choose their learning rate on validation data; the paper's five were
chosen on FashionMNIST, not on CIFAR-10. ":open" marks optimizers without the number of
steps, as in the paper. Prints the table and writes it into its folder as `table2.md`,
beside the files of `meta_train.comparison.leaderboard`. The same command resumes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Suppress

from harness import cli
from harness.tables import markdown_table, plus_minus, text_table
from meta_train.comparison import leaderboard
from meta_train.comparison.inner_training import DEFAULT
from meta_train.comparison.leaderboard import compare
from meta_train.comparison.optimizers import OPEN
from meta_train.comparison.report import Row
from meta_train.problems import problem_names

BASELINES = ("adam", "adam-cosine", "schedule-free", "muon-cosine", "soap-cosine")
FIVE = ("ff", "lstm", "nfn", "ng-gnn", "ng-t")
# as in the paper: without the number of steps
FIVE_OPEN = tuple(name + OPEN for name in FIVE)

# Test accuracy in per cent, mean and deviation over five seeds: FashionMNIST, CIFAR-10.
PUBLISHED = {
    "adam": ((80.97, 0.66), (54.76, 2.82)),
    "ff": ((85.08, 0.14), (57.55, 1.06)),
    "lstm": ((85.69, 0.23), (59.10, 0.66)),
    "nfn": ((83.78, 0.58), (57.95, 0.64)),
    "ng-gnn": ((85.91, 0.37), (64.37, 0.34)),
    "ng-t": ((86.52, 0.19), (60.79, 0.51)),
}


@dataclass(frozen=True)
class Config(leaderboard.Config):
    """Settings of the comparison, with curves of the test split. Both programs share
    the runs of a folder."""

    problems: Suppress[tuple[str, ...]] = ("paper",)
    optimizers: tuple[str, ...] = (*BASELINES, *FIVE, *FIVE_OPEN, DEFAULT)
    """Names of baselines or of bundled weights, or paths of weights files."""
    curve_split: Suppress[str] = "test"
    equal_time: Suppress[bool] = False
    folder: str = "runs/paper"


DATA_SETS = ("FashionMNIST", "CIFAR-10")


def cells(rows: Sequence[Row]) -> dict[str, str]:
    """An optimizer's row by column. rows: its results on both problems."""
    name = rows[0].optimizer
    published = PUBLISHED.get(name.removesuffix(OPEN), (None, None))
    table_row = {"optimizer": name}
    for data, row, known in zip(DATA_SETS, rows, published, strict=True):
        mean, deviation = f"{row.accuracy_mean:.2f}", f"{row.accuracy_std:.2f}"
        table_row[data] = plus_minus(mean, deviation, row.runs)
        text = "" if known is None else "{:.2f} ± {:.2f}".format(*known)
        table_row[f"{data}, published"] = text
    lrs = ["-" if row.lr is None else f"{row.lr:g}" for row in rows]
    times = [f"{row.optimizer_ms_per_step:.1f}" for row in rows]
    table_row["tuning runs"] = str(rows[0].tuning_runs)
    table_row["lr"] = " / ".join(lrs)
    table_row["optimizer ms/step"] = " / ".join(times)
    return table_row


def run(config: Config) -> None:
    rows = compare(config).rows
    table = []
    for name in config.optimizers:
        by_problem = {row.problem: row for row in rows if row.optimizer == name}
        table.append(
            cells([by_problem[problem] for problem in problem_names(config.problems)])
        )
    Path(config.folder, "table2.md").write_text(f"{markdown_table(table)}\n")
    print(f"\n{text_table(table)}")
    print(
        f"\nTest accuracy in %, {config.seeds} seeds. Records are in {config.folder}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
