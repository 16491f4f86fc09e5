"""Rules compared on unseen members: which is kept, a table, and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from meta_train.specialize.family import Family, HandRule, log_losses
from ngopt.specialized.rates import Rates

CONFIDENCE = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Level:
    """A rule of the comparison; those that come later are less simple.

    rates: of one network; None for a hand-made rule.
    """

    name: str
    rule: HandRule
    rates: Rates | None = None

    def log_losses(self, family: Family, seeds: Sequence[int], steps: int) -> Tensor:
        rates = self.rates
        if rates is not None:
            rates = replace(rates, knots=rates.knots.repeat(len(seeds), 1))
        return log_losses(family, seeds, self.rule, steps, rates)


Losses = Mapping[str, Mapping[int, Tensor]]
"""Log losses of members, (n,), by level and horizon."""


def measure(
    levels: Sequence[Level],
    family: Family,
    seeds: Sequence[int],
    horizons: Sequence[int],
) -> dict[str, dict[int, Tensor]]:
    return {
        level.name: {
            steps: level.log_losses(family, seeds, steps) for steps in horizons
        }
        for level in levels
    }


def gain(losses: Losses, name: str, other: str) -> tuple[float, float]:
    """Mean and standard error of how much lower the log losses of a level are than
    those of another, paired by member and averaged over horizons."""
    differences = torch.stack(
        [losses[other][steps] - x for steps, x in losses[name].items()]
    ).mean(0)
    return float(differences.mean()), float(differences.std() / len(differences) ** 0.5)


def chosen(levels: Sequence[Level], losses: Losses) -> Level:
    """The simplest level that none is significantly better than."""
    best = levels[0]
    for level in levels[1:]:
        mean, error = gain(losses, level.name, best.name)
        if mean > CONFIDENCE * error:
            best = level
    return best


def steps_to(losses: Mapping[int, Tensor], target: float) -> float | None:
    """The horizon at which the mean log loss is the target, between those that were
    measured; None if it is never reached."""
    horizons = sorted(losses)
    means = [float(losses[steps].mean()) for steps in horizons]
    if min(means) > target:
        return None
    lowest = np.minimum.accumulate(means)  # falls from left to right
    return float(np.interp(-target, -lowest, horizons))


def rows_of(
    levels: Sequence[Level], losses: Losses, reference: str
) -> list[dict[str, str]]:
    """reference: the level that gains are measured against."""
    rows = []
    for level in levels:
        row = {"rule": level.name}
        for steps, values in losses[level.name].items():
            row[f"{steps} steps"] = f"{values.mean():.2f}"
        mean, error = gain(losses, level.name, reference)
        row["gain"] = "" if level.name == reference else f"{mean:+.2f} ± {error:.2f}"
        rows.append(row)
    return rows


def draw_rates(path: Path, rates: Rates, names: Sequence[str]) -> None:
    """The factor of each parameter over the run, without feedback."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    panel = figure.subplots()
    share = np.linspace(0, 1, rates.knots.shape[1])
    for name, knots in zip(names, rates.knots, strict=True):
        style = "--" if name.endswith("bias") else "-"
        panel.plot(share, knots.exp(), style, marker="o", markersize=3, label=name)
    panel.set_yscale("log")
    panel.set_xlabel("share of the steps")
    panel.set_ylabel("factor of the step size")
    if len(names) <= 16:
        panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
