"""Merges all parts into one record and one printed table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

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
