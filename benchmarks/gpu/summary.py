"""Merges all parts into one record and one printed table."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.records import Record, table

# Printed keys of the parts.
SHOWN = {
    "cost": (
        "network", "optimizer", "ms", "worst_ms", "look_ms", "device_ms", "kernels",
        "copies", "transient_mib", "first_transient_mib", "state",
    ),
    "lm": ("optimizer", "lr", "steps", "validation", "train", "ms", "seconds"),
}  # fmt: skip

# Keys that describe a case.
ABOUT = "network", "optimizer", "what", "lr", "steps"


def merged(
    folder: Path, parts: Sequence[str], ended: Mapping[str, str]
) -> dict[str, Any]:
    """The records of all parts in a folder. ended: reasons of incomplete parts."""
    contents: dict[str, Any] = {}
    for part in parts:
        with suppress(OSError, ValueError):  # missing or invalid
            contents[part] = json.loads((folder / f"{part}.json").read_text())
        if part in ended:
            contents.setdefault(part, {"machine": {}, "records": []})
            contents[part]["ended"] = ended[part]
    return contents


def summary(contents: Mapping[str, Any]) -> tuple[str, bool]:
    """The table of all parts, and whether a case failed."""
    blocks: list[str] = []
    remarks: list[str] = []
    for part, content in contents.items():
        machine = content["machine"]
        device, torch, date = map(machine.get, ("device", "torch", "date"))
        title = f"{part} ({device}, torch {torch}, {date})"
        records = content["records"]
        printed = cases(part, records)
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
            lines.append(f"{word}  {part}: {', '.join(about)}: {record['note']}")
    return lines


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
