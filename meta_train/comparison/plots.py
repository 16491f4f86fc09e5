"""Plots of training records."""

from collections.abc import Mapping, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from meta_train.comparison.inner_training import Record

HEADROOM = 1.5  # upper end of loss axes / first loss
FEW_DECADES = 3  # of a logarithmic axis with labels within a decade

EMPHASIS = {"color": "black", "linewidth": 2.2, "zorder": 3}

Groups = Mapping[str, Sequence[Record]]
Style = Mapping[str, Any]


def plot_curves(
    path: Path, title: str, groups: Groups, emphasis: str | None = None
) -> None:
    """Draws training loss and accuracy over steps: mean and range of each group.

    Accuracy is on the split of the runs' curves; problems without it have the loss.
    emphasis: the group that is drawn in black, above the others.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    # they depend on the number of optimizers alone
    palette = matplotlib.color_sequences["tab10" if len(groups) <= 10 else "tab20"]
    colors = islice(cycle(palette), len(groups))
    records = list(chain.from_iterable(groups.values()))
    has_accuracy = records[0]["curve"]["accuracy"][0] is not None
    key, unit = ("accuracy", 100) if has_accuracy else ("loss", 1)
    for color, (label, of_group) in zip(colors, groups.items(), strict=True):
        style = EMPHASIS if label == emphasis else {"color": color}
        _draw(left, *training_curves(of_group), label, style)
        curves = np.array([record["curve"][key] for record in of_group], float)
        steps = np.array(of_group[0]["curve"]["steps"])
        _draw(right, steps, unit * curves, label, style)
    left.set_ylabel(f"training loss, mean of {records[0]['losses_every']} steps")
    _scale_loss(left, [record["losses"][0] for record in records])
    split = records[0]["run"]["curve_split"]
    if has_accuracy:
        right.set_ylabel(f"{split} accuracy, %")
    else:
        right.set_ylabel(f"{split} loss")
        _scale_loss(right, [record["curve"]["loss"][0] for record in records])
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    handles, labels = right.get_legend_handles_labels()
    columns = min(len(groups), 4)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def training_curves(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,), and mean training losses up to each since the one before, (runs, n).

    nan where a loss is not finite.
    """
    losses = np.array([record["losses"] for record in records], float)  # None is nan
    return records[0]["losses_every"] * np.arange(1, losses.shape[1] + 1), losses


def _scale_loss(axes: Axes, first: Sequence[float | None]) -> None:
    """Makes an axis logarithmic, and cuts off losses far above the first."""
    axes.set_yscale("log")
    known = [loss for loss in first if loss]  # neither None nor zero
    if known:
        axes.set_ylim(top=HEADROOM * max(known))
    low, high = axes.get_ylim()
    if high / low < 10**FEW_DECADES:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw(
    axes: Axes, steps: np.ndarray, curves: np.ndarray, label: str, style: Style
) -> None:
    """curves: (runs, steps). The line ends at the first loss that is not finite."""
    axes.plot(steps, curves.mean(0), label=label, **style)
    if len(curves) > 1:
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(steps, curves.min(0), curves.max(0), **band)
