"""Merges all parts into one record and one printed table; draws cost and lm."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import note_of
from benchmarks.records import Record, table

# Printed keys of the parts other than correctness, which is a table of checks.
SHOWN = {
    "cost": (
        "network", "optimizer", "ms", "worst_ms", "look_ms", "device_ms", "kernels",
        "copies", "transient_mib", "first_transient_mib", "state",
    ),
    "lm": ("optimizer", "lr", "steps", "validation", "train", "ms", "seconds"),
    "meta": ("metanet", "estimator", "validation", "seconds"),
}  # fmt: skip

# Keys that describe a case.
ABOUT = (
    "weights", "check", "network", "optimizer", "metanet", "estimator", "what", "lr",
    "steps",
)  # fmt: skip


def merged(
    folder: Path, parts: Sequence[str], ended: Mapping[str, str]
) -> dict[str, Any]:
    """The records of all parts in a folder. ended: reasons of incomplete parts."""
    found: dict[str, Any] = {}
    for part in parts:
        with suppress(OSError, ValueError):  # missing or invalid
            found[part] = json.loads((folder / f"{part}.json").read_text())
        if part in ended:
            found.setdefault(part, {"machine": {}, "records": []})
            found[part]["ended"] = ended[part]
    return found


def summary(found: Mapping[str, Any]) -> tuple[str, bool]:
    """The table of all parts, and whether a case failed."""
    blocks: list[str] = []
    remarks: list[str] = []
    for part, content in found.items():
        machine = content["machine"]
        place = f"{machine.get('device')}, torch {machine.get('torch')}"
        records = content["records"]
        printed = checks(records) if part == "correctness" else cases(part, records)
        title = f"{part} ({place}, {machine.get('date')})"
        blocks.append(f"{title}\n{table(printed)}" if printed else f"{title}: nothing")
        remarks += remarks_with("failed", "FAILED ", part, records)
        remarks += remarks_with("skipped", "skipped", part, records)
        if "ended" in content:
            remarks.append(f"FAILED   {part}: the part {content['ended']}")
    blocks.append("\n".join(remarks) or "nothing failed or was skipped")
    has_failures = any(remark.startswith("FAILED") for remark in remarks)
    return "\n\n".join(blocks), has_failures


def remarks_with(
    status: str, word: str, part: str, records: Sequence[Record]
) -> list[str]:
    """A line for each record with a status: the case, and why it has that status."""
    lines = []
    for record in records:
        if record["status"] == status:
            about = [str(record[key]) for key in ABOUT if record.get(key) is not None]
            error = f"error {record.get('error')}, limit {record.get('limit')}"
            reason = record.get("note") or error
            lines.append(f"{word}  {part}: {', '.join(about)}: {reason}")
    return lines


def checks(records: Sequence[Record]) -> list[Record]:
    """One row for each check, one column for each weights file."""
    empty = dict.fromkeys((record["weights"] for record in records), "")
    rows: dict[str, Record] = {}
    for record in records:
        row = rows.setdefault(record["check"], {"check": record["check"], **empty})
        status = "FAILED" if record["status"] == "failed" else record["status"]
        error = record.get("error")
        row[record["weights"]] = status if error is None else f"{status} {error:.0e}"
    return list(rows.values())


def cases(part: str, records: Sequence[Record]) -> list[Record]:
    """The printed values of the cases that were measured."""
    rows = []
    for record in records:
        if "ms" in record or "seconds" in record:
            rows.append({key: short(record.get(key)) for key in SHOWN[part]})
    return rows


def short(value: Any) -> Any:
    """A number with four digits; other values as they are."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value


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
