"""What other step sizes of single roles gain over one step size for all.

`python -m meta_train.step_size.compare_roles --folder results/step_size` reads
`roles*.jsonl*` there, the records of `collect_roles`, and prints a table. Gains are
100 x the fall of log validation loss, means over two seeds, with standard errors over
trainings. The bound is that of half, equal or twice the step size, whichever was best
with the other seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from harness import cli
from harness.files import read_lines
from harness.tables import text_table
from meta_train.step_size.compare import Config
from meta_train.step_size.outcomes import UNCHANGED, gains_of
from meta_train.step_size.role_variants import FACTORS


def main(config: Config) -> None:
    paths = sorted(Path(config.folder).glob("roles*.jsonl*"))
    records = read_lines(paths)
    if not records:
        raise ValueError(
            f"folder: expected roles*.jsonl in '{config.folder}'; got none. "
            f"Run meta_train.step_size.collect_roles first."
        )
    print(f"{len(records)} trainings")
    print(text_table(compared([gains_of(record) for record in records])))


def compared(rows: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, str]]:
    """A row of the table for each change. rows: `gains_of` every training."""
    changes: dict[str, None] = {}
    for row in rows:
        for name in row:
            if name != UNCHANGED:
                changes[name.rpartition(" ")[0]] = None
    table = []
    for change in changes:
        columns: dict[str, list[float]] = {}
        for row in rows:
            names = [f"{change} {factor:g}" for factor in FACTORS]
            if names[0] not in row:
                continue
            for factor, name in zip(FACTORS, names, strict=True):
                column = columns.setdefault(f"x {factor:g}", [])
                column.append(100 * row[name].mean())
            curves = np.stack([row[UNCHANGED], *(row[name] for name in names)])
            best = [curves[curves[:, 1 - seed].argmax(), seed] for seed in (0, 1)]
            bounds = columns.setdefault("bound", [])
            bounds.append(100 * float(np.mean(best)))
        cells = {"change of": change, "trainings": str(len(columns["bound"]))}
        for name, values in columns.items():
            error = np.std(values) / len(values) ** 0.5
            cells[name] = f"{np.mean(values):.1f} +- {error:.1f}"
        table.append(cells)
    return table


if __name__ == "__main__":
    cli.main(Config, main, __doc__)
