"""Draws images, curves and histograms as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

HISTOGRAM_BINS = 40


def draw_rows(
    path: Path, rows: Mapping[str, Tensor], titles: Sequence[str] = ()
) -> None:
    """Draws images, a row for each name.

    rows: (n, channels, height, width) in [0, 1], of 1 or 3 channels. titles: above the
    columns.
    """
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.3 * count, 1.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for panel, image in zip(line, images, strict=True):
            pixels = image.detach().movedim(0, -1).squeeze(-1)
            panel.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
    for panel, title in zip(axes[0], titles, strict=False):
        panel.set_title(title, fontsize="small")
    figure.savefig(path, dpi=150)


def draw_histograms(path: Path, groups: Mapping[str, Tensor], label: str) -> None:
    """Draws a histogram of values, one line for each name.

    groups: (n,) each. label: of the values.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    low, high = torch.cat(list(groups.values())).aminmax()
    edges = torch.linspace(low.item(), high.item(), HISTOGRAM_BINS + 1)
    for name, values in groups.items():
        axes.hist(values.tolist(), edges.tolist(), histtype="step", label=name)
    axes.set(xlabel=label, ylabel="networks")
    axes.legend()
    figure.savefig(path, dpi=150)


def draw_curves(
    path: Path, points: Tensor, rows: Mapping[str, Tensor], titles: Sequence[str] = ()
) -> None:
    """Draws curves, one panel per number with a line for each name.

    points: (n,). rows: (count, channels, n) for each name.
    """
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(2 * count, 2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for name, curves in rows.items():
        for panel, curve in zip(axes, curves, strict=True):
            heights = curve.detach().mT.numpy()
            panel.plot(points.numpy(), heights, label=name, linewidth=1)
    for panel, title in zip(axes, titles, strict=False):
        panel.set_title(title, fontsize="small")
    axes[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=150)
