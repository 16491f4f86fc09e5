"""All parts in one record, and in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Record, table

# Keys that are printed of the cases of each part; correctness is printed as a table of
# checks.
SHOWN = {
    "cost": (
        "network", "optimizer", "ms", "worst_ms", "look_ms", "device_ms", "kernels",
        "copies", "transient_mib", "first_transient_mib", "state",
    ),
    "lm": ("optimizer", "lr", "steps", "validation", "train", "ms", "seconds"),
    "meta": ("metanet", "estimator", "validation", "seconds"),
}  # fmt: skip

# Keys that say what a record is of.
ABOUT = (
    "weights", "check", "network", "optimizer", "metanet", "estimator", "what", "lr",
    "steps",
)  # fmt: skip


def merged(
    folder: Path, parts: Sequence[str], ended: Mapping[str, str]
) -> dict[str, Any]:
    """What the parts in a folder found. ended: why parts were stopped."""
    found: dict[str, Any] = {}
    for part in parts:
        content = _content(folder / f"{part}.json")
        if content is not None:
            found[part] = content
        if part in ended:
            found.setdefault(part, {"machine": {}, "records": []})
            found[part]["ended"] = ended[part]
    return found


def _content(path: Path) -> dict[str, Any] | None:
    """What a part has written; None if that is nothing, or no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def summary(found: Mapping[str, Any]) -> tuple[str, bool]:
    """The table of all parts, and whether something failed."""
    blocks: list[str] = []
    remarks: list[str] = []
    has_failures = False
    for part, content in found.items():
        machine = content["machine"]
        place = f"{machine.get('device')}, torch {machine.get('torch')}"
        records = content["records"]
        printed = checks(records) if part == "correctness" else cases(part, records)
        title = f"{part} ({place}, {machine.get('date')})"
        blocks.append(f"{title}\n{table(printed)}" if printed else f"{title}: nothing")
        failed = [record for record in records if record["status"] == "failed"]
        has_failures = has_failures or bool(failed) or "ended" in content
        remarks += [f"FAILED   {part}: {remark(record)}" for record in failed]
        skipped = [record for record in records if record["status"] == "skipped"]
        remarks += [f"skipped  {part}: {remark(record)}" for record in skipped]
        if "ended" in content:
            remarks.append(f"FAILED   {part}: the part {content['ended']}")
    blocks.append("\n".join(remarks) if remarks else "nothing failed or was skipped")
    return "\n\n".join(blocks), has_failures


def checks(records: Sequence[Record]) -> list[Record]:
    """One row for each check, one column for each weights file."""
    weights = list(dict.fromkeys(record["weights"] for record in records))
    rows: dict[str, Record] = {}
    for record in records:
        row = rows.setdefault(record["check"], {"check": record["check"]})
        row.update({name: row.get(name, "") for name in weights})
        row[record["weights"]] = cell(record)
    return list(rows.values())


def cell(record: Record) -> str:
    """A status, with the error where there is one."""
    status = "FAILED" if record["status"] == "failed" else record["status"]
    error = record.get("error")
    return status if error is None else f"{status} {error:.0e}"


def cases(part: str, records: Sequence[Record]) -> list[Record]:
    """What is printed of the cases that were measured."""
    keys = SHOWN[part]
    measured = [record for record in records if "ms" in record or "seconds" in record]
    return [{key: short(record.get(key)) for key in keys} for record in measured]


def short(value: Any) -> Any:
    """Four digits of a number."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value


def remark(record: Record) -> str:
    """What a record is of, and why it failed or was skipped."""
    about = [str(record[key]) for key in ABOUT if record.get(key) is not None]
    error = f"error {record.get('error')}, limit {record.get('limit')}"
    return f"{', '.join(about)}: {record.get('note') or error}"
