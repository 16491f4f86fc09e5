"""What each part of the base rule is worth:
`python -m meta_train.selection.ablate --processes 2`.

Trains the problems of meta-validation and the developing situations with one part
changed at a time and prints, and writes to `ablation.json` and `ablation.md`, how much
lower the validation loss is with the part than without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from harness import cli
from harness.files import write_json
from harness.tables import align, markdown
from meta_train.comparison.runs import Record
from meta_train.problems import problem_names
from meta_train.selection.candidates import Setting, gains

FIRST_SEED = 3_000_000

# What replaces a part, by the part's name.
PARTS: dict[str, Mapping[str, Any]] = {
    "eigenbases (against Adam)": {"longest": 1},
    "both sides of long matrices": {"budget": 0.5},
    "frequent renewal (against 50)": {"renew_every": 50},
    "Nesterov's momentum": {"nesterov": 0.0},
    "scale by fan": {"fan_exponent": 0.0},
    "step sizes that follow the weights": {"weight_exponent": 0.0, "step_size": 0.02},
    "weight decay": {"weight_decay": 0.0},
    "warm-up": {"warmup": 0.001},
    "damping (against 1e-8)": {"epsilon": 1e-8},
    "cut of large gradients": {"clip": 1e9},
    "longer steps in short trainings": {"short": 1},
    "shorter steps of trained weights": {"trained_exponent": 0.0},
    "longer steps on straight paths": {"straight": 1e9},
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
    setting = Setting(problems, seeds, folder, config.processes)
    names = {part: f"without-{i}" for i, part in enumerate(PARTS)}
    candidates = {"whole": {}} | {
        names[part]: changes for part, changes in PARTS.items()
    }
    records = setting.measure(candidates)
    worth = {
        part: losses_without(records[name], records["whole"])
        for part, name in names.items()
    }
    header = ["part", "mean", "standard error", *problems]
    body = [
        [
            part,
            f"{mean(found):+.3f}",
            f"{error(found):.3f}",
            *(f"{found[p]:+.2f}" for p in problems),
        ]
        for part, found in worth.items()
    ]
    write_json(folder / "ablation.json", {"config": asdict(config), "worth": worth})
    (folder / "ablation.md").write_text("\n".join(markdown(header, body)) + "\n")
    print("\n".join(align(header, body)))
    print(
        "Rise of the log of the validation loss without the part; more is better for the part."
    )


def losses_without(without: list[Record], whole: list[Record]) -> dict[str, float]:
    """By problem, how much the log of the validation loss rises without a part."""
    return gains(whole, without)


def mean(found: Mapping[str, float]) -> float:
    return fmean(found.values())


def error(found: Mapping[str, float]) -> float:
    """Standard error of the mean over problems."""
    return stdev(found.values()) / len(found) ** 0.5 if len(found) > 1 else 0.0


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
