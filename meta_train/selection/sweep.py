"""Chooses an optimizer's output gain over whole runs:
`python -m meta_train.selection.sweep --weights runs/ff/best.safetensors`.

A short truncation rewards small steps, for their noise is lower now; one gain, chosen
over whole inner trainings on validation data, undoes much of it. With
`--cooldowns .2 .5` the gain is that of trainings of known length, whose updates fall to
zero over the last share of the steps, one of these; others stay as they are. Prints a
table and writes the weights with the best to `output`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from math import inf, isnan
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from harness import cli
from harness.files import finite, make_folder, write_json
from harness.random import derive_seed
from harness.tables import align
from meta_train.problems import Metrics, load_problem, mean_metrics
from meta_train.training.rules import trained_metanet
from meta_train.training.unroll import Optimizee, whole_run
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained import load_pretrained, save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

HEADER = ["gain", "cooldown", "validation loss", "accuracy %"]


@dataclass(frozen=True)
class Config:
    """Settings of the search; it uses validation data only."""

    weights: str
    """A bundled name or a weights file."""
    output: str
    """Where the weights with the best gain go."""
    problems: tuple[str, ...] = ("fm-16",)
    """A mean over these decides, of accuracies where they have any."""
    gains: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
    cooldowns: tuple[float, ...] = ()
    """Shares of the steps, of trainings of known length, over which updates fall to
    zero."""
    seeds: int = 2
    steps: int = 1000
    autocast: bool = False
    """Compute losses in bfloat16."""
    seed: int = 0
    metanet: str | None = None
    """module:Class of your own metanet, which is imported, where weights name one."""


class Scale(NamedTuple):
    """gain: of the updates. cooldown: share of the steps over which they fall;
    None for no such thing."""

    gain: float
    cooldown: float | None = None


class Found(NamedTuple):
    """chosen: the best. means: of each."""

    chosen: Scale
    means: dict[Scale, Metrics]

    @property
    def best(self) -> Metrics:
        return self.means[self.chosen]


def search(config: Config) -> Found:
    """Runs all scales, and writes the weights with the best one and a record of the
    runs."""
    if config.metanet is not None:
        find_metanet(config.metanet, METANETS, may_import=True)
    learned = load_pretrained(config.weights)
    output = Path(config.output)
    make_folder(output.parent)
    problems = {name: load_problem(name) for name in config.problems}
    rows: list[dict[str, Any]] = []
    found: dict[Scale, list[Metrics]] = {}
    bar = tqdm(list(product(scales(config), problems, range(config.seeds))), unit="run")
    for scale, name, number in bar:
        optimizee = Optimizee(
            problems[name],
            derive_seed(config.seed, 20, number),
            config.autocast,
        )
        metrics = whole_run(optimizee, scaled(learned, scale), config.steps)
        shown = {**metrics._asdict(), "loss": finite(metrics.loss)}
        rows.append({**scale._asdict(), "problem": name, "seed": number, **shown})
        found.setdefault(scale, []).append(metrics)
        bar.set_postfix(gain=scale.gain, loss=f"{metrics.loss:.4f}")
    means = {scale: mean_metrics(some) for scale, some in found.items()}
    best = max(means, key=lambda scale: score(means[scale]))
    stage = {
        "program": "meta_train.selection.sweep",
        **asdict(config),
        "chosen": best._asdict(),
    }
    recipe = {"stages": [*learned.recipe["stages"], stage]}
    chosen = replace(scaled(learned, best), recipe=recipe, table={"validation": rows})
    save_pretrained(chosen, output)
    write_json(output.with_suffix(".json"), {"config": asdict(config), "runs": rows})
    return Found(best, means)


def scales(config: Config) -> list[Scale]:
    """All that are tried."""
    shares = config.cooldowns or (None,)
    return [Scale(gain, share) for share in shares for gain in config.gains]


def score(metrics: Metrics) -> float:
    """Accuracy where there is one, else how low the loss is; least where that is no
    number."""
    if metrics.accuracy is not None:
        return metrics.accuracy
    return -inf if isnan(metrics.loss) else -metrics.loss


def run(config: Config) -> None:
    found = search(config)
    body = []
    for (gain, cooldown), (loss, accuracy) in found.means.items():
        shown = "-" if accuracy is None else f"{100 * accuracy:.2f}"
        body.append(
            [
                f"{gain:g}",
                "-" if cooldown is None else f"{cooldown:g}",
                f"{loss:.4f}",
                shown,
            ]
        )
    print("\n".join(align(HEADER, body)))
    print(f"gain {found.chosen.gain:g} -> {config.output}")


def scaled(learned: LearnedOptimizer, scale: Scale) -> LearnedOptimizer:
    """The same with its metanet's output multiplied: everywhere,
    or where the length of a training is known."""
    metanet = trained_metanet(learned)
    if scale.cooldown is not None:
        return replace(learned, cooldown=Cooldown(scale.gain, scale.cooldown))
    output_scale = scale.gain * metanet.config.output_scale
    return replace(learned, metanet=metanet.reconfigured(output_scale=output_scale))


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
