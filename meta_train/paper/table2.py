"""The paper's Table 2, ours beside the published:
`python -m meta_train.paper.table2 --processes 2`.

Test accuracy of two small CNNs after 1,000 steps, mean and sample deviation over the
seeds. Baselines choose their learning rate on validation data; the paper's five were
chosen on FashionMNIST, not on CIFAR-10; ":open" is behind the names of those that are
not told, as in the paper, how many steps will be made. Prints the table and writes it
into its folder as `table2.md`, beside what `meta_train.comparison.leaderboard` writes;
the same command resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import cli
from harness.tables import align, markdown
from meta_train.comparison.optimizers import OPEN
from meta_train.comparison.report import Row, spread
from meta_train.paper.published import PUBLISHED, Config, comparison
from meta_train.problems import PAPER

HEADER = [
    "optimizer",
    "FashionMNIST",
    "published",
    "CIFAR-10",
    "published",
    "tuning runs",
    "lr",
    "optimizer ms/step",
]


def cells(rows: Sequence[Row]) -> list[str]:
    """A line of the table, under `HEADER`, from an optimizer's rows on both problems."""
    name, own = rows[0].optimizer, []
    for row, published in zip(
        rows, PUBLISHED.get(name.removesuffix(OPEN), (None, None)), strict=True
    ):
        own.append(
            spread(f"{row.accuracy_mean:.2f}", f"{row.accuracy_std:.2f}", row.runs)
        )
        own.append("" if published is None else "{:.2f} ± {:.2f}".format(*published))
    lrs = ["-" if row.lr is None else f"{row.lr:g}" for row in rows]
    times = [f"{row.optimizer_ms_per_step:.1f}" for row in rows]
    return [name, *own, str(rows[0].tuning_runs), " / ".join(lrs), " / ".join(times)]


def run(config: Config) -> None:
    rows = comparison(config).rows
    body = []
    for name in config.optimizers:
        own = {row.problem: row for row in rows if row.optimizer == name}
        body.append(cells([own[problem] for problem in PAPER]))
    path = Path(config.folder, "table2.md")
    path.write_text("\n".join(markdown(HEADER, body)) + "\n")
    print("\n".join(["", *align(HEADER, body)]))
    print(
        f"\nTest accuracy in %, {config.seeds} seeds. All records are in {config.folder}."
    )


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
