"""Lists problems with their sizes and run times: `python -m meta_train.problems`.

Trains some steps of each problem with Adam: half a minute a list on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from tqdm import tqdm

from harness import cli
from harness.tables import markdown
from meta_train.problems import LISTS, load_problem

EXTRA = "situations-real"  # needs packages that the extra `train` does not install
HEADER = ["list", "problem", "parameters", "batch", "steps", "ms/step", "run s"]


@dataclass(frozen=True)
class Config:
    """Options of the command line."""

    lists: tuple[str, ...] = tuple(name for name in LISTS if name != EXTRA)
    """Names of lists."""
    measured_steps: int = 30
    """Number of steps of each problem that are timed."""

    def __post_init__(self) -> None:
        unknown = set(self.lists) - LISTS.keys()
        if unknown:
            raise ValueError(
                f"lists: expected names of {', '.join(LISTS)}; got {unknown}"
            )


def cells(list_name: str, name: str, measured_steps: int) -> list[str]:
    """A row of the table with the columns of `HEADER`."""
    problem = load_problem(name)
    model = problem.init(0)
    count = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.Adam(model.parameters())
    times = []
    for step in range(measured_steps):
        start = perf_counter()
        optimizer.zero_grad()
        problem.loss(model, problem.batch(0, step)).backward()
        optimizer.step()
        times.append(perf_counter() - start)
    seconds = median(times)
    batch_size = getattr(problem, "batch_size", None) or "all"
    return [
        list_name,
        name,
        f"{count:,}",
        str(batch_size),
        str(problem.steps),
        f"{1e3 * seconds:.1f}",
        f"{seconds * problem.steps:.1f}",
    ]


def run(config: Config) -> None:
    names = [(given, name) for given in config.lists for name in LISTS[given]]
    rows = []
    for given, name in tqdm(names, unit="problem"):
        rows.append(cells(given, name, config.measured_steps))
    print("\n".join(["", *markdown(HEADER, rows)]))


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
