"""Plots of the records of cost and lm."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.session import note_of
from benchmarks.records import Record


def draw(part: str, records: Sequence[Record], path: Path) -> None:
    """Draws a part that has a plot; prints an error if that fails."""
    if part not in PICTURES or not records:
        return
    try:
        PICTURES[part](records, path)
    except Exception as error:  # the numbers are complete without the plot
        print(f"no picture '{path}': {note_of(error)}", file=sys.stderr)


def draw_cost(records: Sequence[Record], path: Path) -> None:
    """Bars of milliseconds by optimizer, one panel for each network."""
    from matplotlib.figure import Figure

    groups: dict[str, dict[str, float]] = {}
    for record in records:
        if record.get("ms"):
            own = groups.setdefault(record["network"], {})
            own[record["optimizer"]] = record["ms"]
    if not groups:
        return
    figure = Figure(figsize=(4 * len(groups), 4), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (network, own) in zip(panels, groups.items(), strict=True):
        bars = axes.barh(list(own), list(own.values()))
        axes.invert_yaxis()
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.set_xscale("log")
        axes.margins(x=0.2)
        axes.set_title(network)
        axes.set_xlabel("milliseconds a step")
    figure.savefig(path, dpi=120)


def draw_lm(records: Sequence[Record], path: Path) -> None:
    """Validation loss over steps and over seconds."""
    from matplotlib.figure import Figure

    runs = [record for record in records if "curve" in record]
    if not runs:
        return
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key in zip(panels, ("steps", "seconds"), strict=True):
        for record in runs:
            label = _label(record)
            curve = record["curve"]
            axes.plot(curve[key], curve["loss"], marker=".", label=label)
        axes.set_xlabel(key)
        axes.set_ylabel("validation loss")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _label(record: Record) -> str:
    rate = "" if record["lr"] is None else f" {record['lr']:g}"
    return f"{record['optimizer']}{rate}, {record['steps']} steps"


PICTURES = {"cost": draw_cost, "lm": draw_lm}
