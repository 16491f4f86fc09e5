"""Rules compared on unseen members: which is kept, and what it gains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from meta_train.specialize.family import Family, HandRule, log_losses
from ngopt.specialized.rates import Rates


@dataclass(frozen=True)
class Level:
    """A rule of the comparison; those that come later are less simple.

    rates: for a number of copies; None for a hand-made rule.
    """

    name: str
    rule: HandRule
    rates: Callable[[int], Rates] | None = None


LEAST = 0.02  # gain for which a less simple rule pays, in nats

Losses = Mapping[str, Mapping[int, Tensor]]
"""Log losses of members, (n,), by level and horizon."""


def measure(
    levels: Sequence[Level],
    family: Family,
    seeds: Sequence[int],
    horizons: Sequence[int],
) -> dict[str, dict[int, Tensor]]:
    """horizons: from the shortest to the longest."""
    losses: dict[str, dict[int, Tensor]] = {level.name: {} for level in levels}
    pairs = [(level, steps) for level in levels for steps in horizons]
    for level, steps in tqdm(pairs, desc="comparison", unit="horizon"):
        rates = level.rates and level.rates(len(seeds))
        of_steps = log_losses(family, seeds, level.rule, steps, rates)
        losses[level.name][steps] = of_steps
    return losses


def gain(losses: Losses, name: str, other: str) -> tuple[float, float]:
    """Mean and standard error of how much lower the log losses of a level are than
    those of another, paired by member and averaged over horizons."""
    values = [losses[other][steps] - x for steps, x in losses[name].items()]
    means = torch.stack(values).mean(0)
    return float(means.mean()), float(means.std() / len(means) ** 0.5)


def chosen(levels: Sequence[Level], losses: Losses) -> Level:
    """A later level is chosen only if it gains two standard errors, and `LEAST`."""
    best = levels[0]
    for level in levels[1:]:
        mean, error = gain(losses, level.name, best.name)
        if mean > max(2 * error, LEAST):
            best = level
    return best


def steps_to(losses: Mapping[int, Tensor], target: float) -> float:
    """The horizon at which the mean log loss is the target, between those that were
    measured; infinite if it is not reached."""
    means = [float(x.mean()) for x in losses.values()]
    lowest = np.minimum.accumulate(means)
    return float(np.interp(-target, -lowest, list(losses), right=np.inf))


def rows_of(losses: Losses, reference: str) -> list[dict[str, str]]:
    """reference: the level that gains are measured against."""
    rows = []
    for name, by_steps in losses.items():
        row = {"rule": name}
        row |= {f"{steps} steps": f"{x.mean():.2f}" for steps, x in by_steps.items()}
        mean, error = gain(losses, name, reference)
        cell = f"{mean:+.3f} ± {error:.3f}"
        row[f"nats below {reference}"] = "" if name == reference else cell
        rows.append(row)
    return rows


def draw_rates(path: Path, rates: Rates, names: Sequence[str]) -> None:
    """The factor of each parameter over the run, at the shortest and the longest
    horizon, without feedback."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, steps in zip(panels, rates.horizons, strict=True):
        knots = rates.at(steps)
        share = np.linspace(0, 1, knots.shape[1])
        for name, of_parameter in zip(names, knots, strict=True):
            style = "--" if "bias" in name.rpartition(".")[2] else "-"
            panel.plot(share, of_parameter.exp(), style, marker="o", label=name)
        panel.set_title(f"{steps} steps")
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("share of the steps (biases: dashed)")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(min(low, 0.45), max(high, 2.2))  # at least three ticks
    panels[0].set_ylabel("factor of the step size")
    if len(names) <= 16:
        panels[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
