"""Whether one setting fits every width, depth, horizon and batch size:
`python -m meta_train.comparison.ladders`.

Trains each cell of `meta_train.problems.ladders` with multiples of the default's step
sizes, and the ends of each ladder with AdamW's and Muon's rates. Losses are those of
the validation split, means over seeds. A cell fits if multiplier 1 is the best one or
next to it, and its loss at most 1 % above the best. Writes `ladders.json`, `ladders.md`
and a picture of each family into its folder; the same command resumes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby, product
from math import isfinite, log2
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from tqdm import tqdm

from harness import cli
from harness.files import write_json
from harness.settings import check_choice, check_counts
from harness.tables import markdown_table, text_table
from meta_train.comparison.inner_training import DEFAULT, Run
from meta_train.comparison.optimizers import load_optimizer
from meta_train.comparison.report import mean_validation_losses
from meta_train.comparison.runs import execute
from meta_train.problems import load_problem
from meta_train.problems.ladders import AXES, FAMILIES, ladder

MULTIPLIERS = 0.25, 0.5, 1.0, 2.0, 4.0
NEAR = 0.01  # of the loss: as good as the best
BASELINES = "adamw-cosine", "muon-cosine"

Losses = dict[float, float]
"""Mean loss by multiplier or learning rate, ascending."""


@dataclass(frozen=True)
class Config:
    """Which ladders are measured."""

    families: tuple[str, ...] = tuple(FAMILIES)
    optimizers: tuple[str, ...] = (DEFAULT, *BASELINES)
    """The default and, at the ends of ladders, optimizers with their rates."""
    seeds: int = 1
    processes: int = 1
    folder: str = "runs/ladders"

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "processes")
        for name in self.families:
            check_choice("families", name, FAMILIES)
        for name in self.optimizers:
            check_choice("optimizers", name, (DEFAULT, *BASELINES))


@dataclass(frozen=True)
class Cell:
    """Losses of an optimizer on one rung of a ladder; none before it is measured."""

    family: str
    axis: str
    value: int
    problem: str
    optimizer: str
    losses: Losses

    @property
    def best(self) -> float:
        """The best multiplier or rate."""
        return min(self.losses, key=self.losses.__getitem__)

    @property
    def excess(self) -> float:
        """The loss at multiplier 1 divided by the lowest, less 1."""
        return self.losses[1.0] / self.losses[self.best] - 1

    @property
    def fits(self) -> bool:
        return abs(log2(self.best)) <= 1 and self.excess <= NEAR

    def cells(self) -> dict[str, str]:
        losses = {f"x {rate:g}": f"{loss:.4g}" for rate, loss in self.losses.items()}
        return {
            "family": self.family,
            "axis": self.axis,
            "value": str(self.value),
            **losses,
            "best": f"{self.best:g}",
            "1 above the best": f"{100 * self.excess:.1f} %",
            "fits": "yes" if self.fits else "no",
        }


def plan(problem: str, optimizer: str, seeds: int) -> list[Run]:
    """Runs at all multipliers of the default, which are its `lr`, or learning rates."""
    steps = load_problem(problem).steps
    is_default = optimizer == DEFAULT
    runs = []
    for rate in MULTIPLIERS if is_default else load_optimizer(optimizer).lrs:
        name = optimizer
        if is_default and rate != 1:
            name = f"{DEFAULT}:scale={rate:g}"
        spec = load_optimizer(name)
        first = Run(problem, name, rate, spec.weights, 0, steps, "tuning")
        runs += [replace(first, seed=seed) for seed in range(seeds)]
    return runs


def measure(config: Config) -> list[Cell]:
    """Trains what is not on record yet: all rungs of the default, and those at the ends
    of ladders of other optimizers."""
    rungs = []
    for optimizer, family, axis in product(config.optimizers, config.families, AXES):
        problems = list(ladder(family, axis).items())
        if optimizer != DEFAULT:
            problems = [problems[0], problems[-1]]
        for value, problem in problems:
            rungs.append(Cell(family, axis, value, problem, optimizer, {}))
    # each once; the base of a family is on four ladders
    keys = dict.fromkeys((rung.problem, rung.optimizer) for rung in rungs)
    planned = {key: plan(*key, config.seeds) for key in keys}
    runs = list(chain.from_iterable(planned.values()))
    with tqdm(total=len(runs), unit="run") as bar:
        made = execute(runs, Path(config.folder, "records"), config.processes, bar)
    records = dict(zip(runs, made, strict=True))
    cells = []
    for rung in rungs:
        of_rung = [records[run] for run in planned[rung.problem, rung.optimizer]]
        cells.append(replace(rung, losses=mean_validation_losses(of_rung)))
    return cells


def overview(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """The best multiplier of every rung, a row for each family."""
    rows: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        axes = rows.setdefault(cell.family, {axis: [] for axis in AXES})
        axes[cell.axis].append(f"{cell.value:,}: {cell.best:g}")
    return [
        {"family": family, **{axis: ", ".join(x) for axis, x in axes.items()}}
        for family, axes in rows.items()
    ]


def drifts(cells: Sequence[Cell]) -> list[dict[str, str]]:
    """The best multiplier or rate at both ends of every ladder."""
    rows = []
    of_ladder = attrgetter("optimizer", "family", "axis")
    for (optimizer, family, axis), group in groupby(cells, of_ladder):
        rungs = list(group)
        smallest, largest = rungs[0], rungs[-1]
        drift = largest.best / smallest.best
        rows.append(
            {
                "optimizer": optimizer,
                "family": family,
                "axis": axis,
                "from": f"{smallest.value}: {smallest.best:g}",
                "to": f"{largest.value}: {largest.best:g}",
                "drift": f"x {max(drift, 1 / drift):g}",
            }
        )
    return rows


def summary(cells: Sequence[Cell]) -> str:
    """Of the default's cells, each once, though the base is on four ladders."""
    once = {cell.problem: cell for cell in cells}
    fitting = sum(cell.fits for cell in once.values())
    excess = [cell.excess for cell in once.values()]
    finite = [x for x in excess if isfinite(x)]
    text = (
        f"{fitting} of {len(once)} cells fit: the best multiplier is 1, 2 or .5, and "
        f"the loss at 1 within {NEAR:.0%} of it. The loss at 1 is {fmean(finite):.1%} "
        "above the best on average."
    )
    if len(finite) < len(excess):
        text += f" In {len(excess) - len(finite)} cells it is not finite."
    return text


def draw(path: Path, family: str, cells: Sequence[Cell]) -> None:
    """Losses over multipliers and rates: a column an axis, a row an optimizer."""
    optimizers = list(dict.fromkeys(cell.optimizer for cell in cells))
    size = 3.2 * len(AXES), 2.8 * len(optimizers)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(optimizers), len(AXES), squeeze=False)
    for (row, optimizer), (column, axis) in product(
        enumerate(optimizers), enumerate(AXES)
    ):
        panel = panels[row][column]
        rungs = [x for x in cells if (x.optimizer, x.axis) == (optimizer, axis)]
        for number, cell in enumerate(rungs):
            shade = {"color": str(0.75 * (1 - number / max(len(rungs) - 1, 1)))}
            rates = list(cell.losses)
            excess = [cell.losses[rate] / cell.losses[cell.best] for rate in rates]
            panel.plot(rates, excess, marker=".", label=str(cell.value), **shade)
        panel.set_xscale("log", base=2 if optimizer == DEFAULT else 10)
        panel.set_ylim(0.99, 1.3)
        panel.grid(alpha=0.3)
        if rungs:
            panel.legend(title=axis, fontsize="small")
        if row == len(optimizers) - 1 or optimizer == DEFAULT:
            panel.set_xlabel("multiplier" if optimizer == DEFAULT else "learning rate")
        if column == 0:
            panel.set_ylabel(f"{optimizer}\nloss / lowest loss")
    figure.suptitle(family)
    figure.savefig(path, dpi=100)


def run(config: Config) -> None:
    cells = measure(config)
    folder = Path(config.folder)
    write_json(folder / "ladders.json", [asdict(cell) for cell in cells])
    for family in config.families:
        draw(folder / f"{family}.png", family, [x for x in cells if x.family == family])
    ours = [cell for cell in cells if cell.optimizer == DEFAULT]
    text = summary(ours) + "\n" if ours else ""
    tables = [[cell.cells() for cell in ours], drifts(cells), overview(ours)]
    parts = [text, *map(markdown_table, filter(None, tables))]
    Path(folder, "ladders.md").write_text("\n".join(parts) + "\n")
    print("\n\n".join([*map(text_table, filter(None, tables)), text]))
    print(f"All results are in {config.folder}.")


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
