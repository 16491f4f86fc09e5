"""Ablation of the base rule: `python -m meta_train.selection.ablate --processes 2`.

Trains the problems of meta-validation and the developing situations with one part
changed at a time. Prints how much lower the log of the validation loss is with each
part, and writes it to `ablation.json` and `ablation.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import isfinite, log
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tqdm import tqdm

from harness import cli
from harness.files import make_folder, write_json
from harness.tables import markdown_table, text_table
from meta_train.comparison.inner_training import Record, Run
from meta_train.comparison.optimizers import reads_connections
from meta_train.comparison.runs import execute
from meta_train.problems import load_problem, problem_names
from ngopt.pretrained import LearnedOptimizer, save_pretrained, weights_hash
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap

FIRST_SEED = 3_000_000
# Largest change of the score by one problem: a factor e^.5 = 1.65 in loss.
LARGEST_GAIN = 0.5

# Changes of the config that leave out a part, by its name.
PARTS: dict[str, Mapping[str, Any]] = {
    "eigenbases (against Adam)": {"max_factor_size": 1},
    "both sides of long matrices": {"factor_memory_ratio": 0.5},
    "frequent renewal (against 50)": {"precondition_frequency": 50},
    "Nesterov's momentum": {"nesterov": 0.0},
    "scale by fan": {"fan_exponent": 0.0},
    "step sizes that follow the weights": {"weight_exponent": 0.0, "step_size": 0.02},
    "weight decay": {"weight_decay": 0.0},
    "warm-up": {"warmup": 0.001},
    "damping (against 1e-8)": {"epsilon": 1e-8},
    "cut of large gradients": {"clip": 1e9},
    "longer steps in short trainings": {"short_run_steps": 1},
    "shorter steps of trained weights": {"trained_exponent": 0.0},
    "longer steps on straight paths": {"path_ratio": 1e9},
    "tables: rare rows": {"rare_exponent": 0.0, "beta2_table": 0.95},
}


@dataclass(frozen=True)
class Config:
    """Settings of the ablation."""

    problems: tuple[str, ...] = ("meta-validation", "situations")
    """Names of problems, or of lists of them."""
    seeds: int = 3
    folder: str = "runs/ablate"
    processes: int = 1


def run(config: Config) -> None:
    folder = Path(config.folder)
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + config.seeds))
    problems = problem_names(config.problems)
    variants = {"whole": Soap()}
    for number, changes in enumerate(PARTS.values()):
        variants[f"without-{number}"] = Soap(SoapConfig(**changes))
    records = whole_runs(variants, problems, seeds, folder, config.processes)
    whole, *others = records.values()
    worth, table = {}, []
    for part, without in zip(PARTS, others, strict=True):
        # how much the log of the validation loss rises without the part
        worth[part] = gains(whole, without)
        table.append(cells(part, worth[part]))
    write_json(folder / "ablation.json", {"config": asdict(config), "worth": worth})
    (folder / "ablation.md").write_text(f"{markdown_table(table)}\n")
    print(text_table(table))
    print("Rise of the log of the validation loss without the part; more is better.")


def whole_runs(
    variants: Mapping[str, Soap | LearnedOptimizer],
    problems: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    processes: int = 1,
    phase: str = "tuning",
) -> dict[str, list[Record]]:
    """Records by variant: whole training runs of every problem with every seed.

    folder: of records, and of a weights file for each variant; finished runs there are
    not repeated. processes: runs at the same time. phase: see `Run`.
    """
    make_folder(folder)
    runs: list[Run] = []
    for name, rule in variants.items():
        path = folder / f"{name}.safetensors"
        save_pretrained(rule, path)
        digest, traced = weights_hash(rule), reads_connections(rule)
        for problem in problems:
            steps = load_problem(problem).steps
            run = Run(problem, str(path), None, digest, 0, steps, phase, traced=traced)
            runs += [replace(run, seed=seed) for seed in seeds]
    with tqdm(total=len(runs), unit="run") as bar:
        records = iter(execute(runs, folder / "records", processes, bar))
    count = len(problems) * len(seeds)
    return {name: list(islice(records, count)) for name in variants}


def gains(records: Sequence[Record], references: Sequence[Record]) -> dict[str, float]:
    """By problem: mean over seeds of log(loss of the reference / validation loss).

    Each is clipped to +- LARGEST_GAIN. A run that diverged counts -LARGEST_GAIN.
    """
    clipped: dict[str, list[float]] = {}
    for record, reference in zip(records, references, strict=True):
        gain = _log_loss(reference) - _log_loss(record)
        gain = min(max(gain, -LARGEST_GAIN), LARGEST_GAIN)
        clipped.setdefault(record["run"]["problem"], []).append(gain)
    return {problem: fmean(values) for problem, values in clipped.items()}


def _log_loss(record: Record) -> float:
    loss = record["validation"]["loss"]
    return log(loss) if loss is not None and isfinite(loss) and loss > 0 else log(1e9)


def cells(part: str, worth: Mapping[str, float]) -> dict[str, str]:
    """A row of the table by column. worth: by problem."""
    values = list(worth.values())
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {
        "part": part,
        "mean": f"{fmean(values):+.3f}",
        "standard error": f"{error:.3f}",
        **{problem: f"{value:+.2f}" for problem, value in worth.items()},
    }


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
