"""Lists problems with their sizes and the time of a run:
`python -m meta_train.problems`.

Takes half a minute to two minutes a list on one core; it trains some steps of each
problem with Adam.
`--names` prints the names alone.
"""

from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from tqdm import tqdm

from harness import cli
from harness.settings import check_choice
from harness.tables import markdown_table
from meta_train.problems import LISTS, load_problem

EXTRA = "situations-real"  # needs packages that the extra `train` does not install
MEASURED_STEPS = 30


@dataclass(frozen=True)
class Config:
    """What to list."""

    lists: tuple[str, ...] = tuple(name for name in LISTS if name != EXTRA)
    """Names of lists."""
    names: bool = False
    """Print names alone, and measure nothing."""

    def __post_init__(self) -> None:
        for name in self.lists:
            check_choice("lists", name, LISTS)


def cells(list_name: str, name: str) -> dict[str, str]:
    """A row of the table by column."""
    problem = load_problem(name)
    model = problem.init(0)
    count = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.Adam(model.parameters())
    times = []
    for step in range(MEASURED_STEPS):
        start = perf_counter()
        optimizer.zero_grad()
        problem.loss(model, problem.batch(0, step)).backward()
        optimizer.step()
        times.append(perf_counter() - start)
    seconds = median(times)
    return {
        "list": list_name,
        "problem": name,
        "parameters": f"{count:,}",
        "batch": str(getattr(problem, "batch_size", None) or "all"),
        "steps": str(problem.steps),
        "ms/step": f"{1e3 * seconds:.1f}",
        "run s": f"{seconds * problem.steps:.1f}",
    }


def run(config: Config) -> None:
    if config.names:
        for name in config.lists:
            print(f"{name}: {', '.join(LISTS[name])}")
        return
    names = [(key, name) for key in config.lists for name in LISTS[key]]
    rows = [cells(*entry) for entry in tqdm(names, unit="problem")]
    print(f"\n{markdown_table(rows)}")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
