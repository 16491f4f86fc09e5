"""Chooses an optimizer's output gain over whole runs: `python -m meta_train.sweep --weights runs/ff/best.safetensors`.

A short truncation rewards small steps, for their noise is lower now; one gain, chosen over whole
inner trainings on validation data, undoes much of it. Prints a table and writes the weights with
the best gain to `output`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from meta_train import cli
from meta_train.estimators import trained_metanet
from meta_train.problems import Metrics, load_problem, mean_metrics
from meta_train.random import derive_seed
from meta_train.unroll import Task, whole_run
from ngopt.learned import LearnedOptimizer
from ngopt.pretrained import load_pretrained, save_pretrained


@dataclass(frozen=True)
class Config:
    """Settings of the search; it uses validation data only."""

    weights: str
    """A bundled name or a weights file."""
    output: str
    """Where the weights with the best gain go."""
    problem: str = "fm-16"
    gains: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
    seeds: int = 2
    steps: int = 1000
    autocast: bool = False
    """Compute losses in bfloat16."""
    seed: int = 0


class Found(NamedTuple):
    """gain: the best. means: of each gain."""

    gain: float
    means: dict[float, Metrics]

    @property
    def best(self) -> Metrics:
        return self.means[self.gain]


def search(config: Config) -> Found:
    """Runs all gains, and writes the weights with the best one and a record of the runs."""
    learned, problem = load_pretrained(config.weights), load_problem(config.problem)
    rows: list[dict[str, Any]] = []
    found: dict[float, list[Metrics]] = {}
    bar = tqdm([(g, k) for g in config.gains for k in range(config.seeds)], unit="run")
    for gain, number in bar:
        task = Task(problem, derive_seed(config.seed, 20, number), config.autocast)
        metrics = whole_run(task, with_gain(learned, gain), config.steps)
        rows.append({"gain": gain, "seed": number, **metrics._asdict()})
        found.setdefault(gain, []).append(metrics)
        bar.set_postfix(gain=gain, loss=f"{metrics.loss:.4f}")
    means = {gain: mean_metrics(some) for gain, some in found.items()}
    best = max(means, key=lambda gain: score(means[gain]))
    stage = {"program": "meta_train.sweep", **asdict(config), "chosen_gain": best}
    recipe = {"stages": [*learned.recipe["stages"], stage]}
    chosen = replace(with_gain(learned, best), recipe=recipe, table={"validation": rows})
    save_pretrained(chosen, config.output)
    Path(config.output).with_suffix(".json").write_text(json.dumps({"config": asdict(config), "runs": rows}, indent=2))
    return Found(best, means)


def score(metrics: Metrics) -> float:
    """Accuracy where there is one, else how low the loss is."""
    return -metrics.loss if metrics.accuracy is None else metrics.accuracy


def run(config: Config) -> None:
    found = search(config)
    print("  gain   validation loss   accuracy %")
    for gain, (loss, accuracy) in found.means.items():
        print(f"{gain:6.2f} {loss:17.4f} {'-' if accuracy is None else f'{100 * accuracy:.2f}':>12}")
    print(f"gain {found.gain} -> {config.output}")


def with_gain(learned: LearnedOptimizer, gain: float) -> LearnedOptimizer:
    """The same with its metanet's output multiplied."""
    metanet = trained_metanet(learned)
    scale = gain * metanet.config.output_scale
    return replace(learned, metanet=metanet.reconfigured(output_scale=scale))


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
