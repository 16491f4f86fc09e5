"""Ablation of the base rule: `python -m meta_train.selection.ablate --processes 2`.

Trains the problems of meta-validation and the developing situations with one part
changed at a time. Prints how much lower the log of the validation loss is with each
part, and writes it to `ablation.json` and `ablation.md`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from harness import cli
from harness.files import write_json
from harness.tables import markdown_table, text_table
from meta_train.problems import problem_names
from meta_train.selection.base_rules import base_rule, gains, whole_runs

FIRST_SEED = 3_000_000

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
    variants = {"whole": base_rule({})}
    for number, changes in enumerate(PARTS.values()):
        variants[f"without-{number}"] = base_rule(changes)
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
