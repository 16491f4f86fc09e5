"""Chooses an optimizer's output gain over whole runs:
`python -m meta_train.selection.sweep --weights runs/ff/best.safetensors`.

Short truncations favour small steps, because their loss is less noisy. A gain that is
chosen over whole inner runs, on validation data, corrects much of this. With
`--cooldowns .2 .5` the gain applies to runs of known length alone, and their updates
fall to zero over that last share of the steps. Prints a table and writes the
weights with the best gain to `output`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import inf, isnan
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from harness import cli
from harness.files import make_folder, without_nan, write_json
from harness.random import derive_seed
from harness.settings import check_counts
from harness.tables import text_table
from meta_train.comparison.optimizers import load_learned
from meta_train.problems import Metrics, load_problem, mean_metrics
from meta_train.training.unroll import Optimizee, whole_run
from meta_train.training.weights import with_stage
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


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
    """Shares of the steps, in runs of known length, over which updates fall to zero."""
    seeds: int = 2
    steps: int | None = None
    """Of an inner run; None for the horizon of each problem."""
    autocast: bool = False
    """Compute losses in bfloat16."""
    seed: int = 0
    metanet: str | None = None
    """module:Class of your own metanet, which is imported, where weights name one."""

    def __post_init__(self) -> None:
        check_counts(self, "seeds", "steps")
        if Path(self.output).suffix != ".safetensors":
            raise ValueError(
                "output: expected a path that ends in .safetensors; got "
                f"'{self.output}'"
            )
        for key in ("problems", "gains"):
            if not getattr(self, key):
                raise ValueError(f"{key}: expected at least one; got none")


class OutputGain(NamedTuple):
    """gain: factor of the updates. cooldown: share of the steps over which updates
    fall to zero; None without."""

    gain: float
    cooldown: float | None = None


def search(config: Config) -> tuple[OutputGain, dict[OutputGain, Metrics]]:
    """Runs all gains. Writes the weights with the best one, and records of the runs.

    Returns the best, and the mean metrics of each.
    """
    learned = load_learned(config.weights, config.metanet)
    output = Path(config.output)
    make_folder(output.parent)
    problems = {name: load_problem(name) for name in config.problems}
    rows: list[dict[str, Any]] = []
    metrics_of_gain: dict[OutputGain, list[Metrics]] = {}
    gains = product(config.cooldowns or (None,), config.gains)
    runs = list(product(gains, problems, range(config.seeds)))
    bar = tqdm(runs, unit="run")
    for (cooldown, factor), name, number in bar:
        gain = OutputGain(factor, cooldown)
        seed = derive_seed(config.seed, 20, number)
        optimizee = Optimizee(problems[name], seed, config.autocast)
        steps = config.steps or problems[name].steps
        metrics = whole_run(optimizee, with_gain(learned, gain), steps)
        row = {**gain._asdict(), "problem": name, "seed": number, **metrics._asdict()}
        rows.append(without_nan(row))
        metrics_of_gain.setdefault(gain, []).append(metrics)
        bar.set_postfix(gain=gain.gain, loss=f"{metrics.loss:.4f}")
    means = {gain: mean_metrics(runs) for gain, runs in metrics_of_gain.items()}
    best = max(means, key=lambda gain: score(means[gain]))
    details = {**asdict(config), "chosen": best._asdict()}
    chosen = replace(with_gain(learned, best), table={"validation": rows})
    save_pretrained(with_stage(chosen, "meta_train.selection.sweep", details), output)
    write_json(output.with_suffix(".json"), {"config": asdict(config), "runs": rows})
    return best, means


def score(metrics: Metrics) -> float:
    """The accuracy if there is one, else the negative loss; -inf if that is nan."""
    if metrics.accuracy is not None:
        return metrics.accuracy
    return -inf if isnan(metrics.loss) else -metrics.loss


def run(config: Config) -> None:
    if Path(config.output).exists():
        raise ValueError(
            f"output: expected a new file; got '{config.output}', which exists. Name "
            "another, or delete it"
        )
    best, means = search(config)
    table = []
    for (gain, cooldown), (loss, accuracy) in means.items():
        row = {
            "gain": f"{gain:g}",
            "cooldown": "-" if cooldown is None else f"{cooldown:g}",
            "validation loss": f"{loss:.4f}",
            "accuracy %": "-" if accuracy is None else f"{100 * accuracy:.2f}",
        }
        table.append(row)
    print(text_table(table))
    print(f"gain {best.gain:g} -> {config.output}")
    if advice := edge_advice(best.gain, config.gains):
        print(advice)


def edge_advice(gain: float, gains: Sequence[float]) -> str | None:
    """What to do if the best gain is the smallest or the largest of several."""
    if len(set(gains)) < 2 or min(gains) < gain < max(gains) or gain == 0:
        return None
    is_largest = gain == max(gains)
    name, beyond = ("largest", gain * 2) if is_largest else ("smallest", gain / 2)
    return (
        f"warning: {gain:g} is the {name} of the gains, so a better one may lie beyond "
        f"it. Add {beyond:g} to --gains."
    )


def with_gain(learned: LearnedOptimizer, gain: OutputGain) -> LearnedOptimizer:
    """Multiplies the metanet's output: with a cooldown, in runs of known length
    alone."""
    metanet = learned.metanet
    if gain.cooldown is not None:
        return replace(learned, cooldown=Cooldown(gain.gain, gain.cooldown))
    if not hasattr(metanet.config, "output_scale"):
        raise ValueError(
            f"{type(metanet).__name__}: expected a config with output_scale, which "
            f"gains are multiplied by; got {metanet.config}"
        )
    output_scale = gain.gain * metanet.config.output_scale
    return replace(learned, metanet=metanet.reconfigured(output_scale=output_scale))


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
