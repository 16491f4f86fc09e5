"""The printed table of the cost of a step."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.records import Record, table

SHOWN = (
    "network", "optimizer", "ms", "worst_ms", "look_ms", "device_ms", "kernels",
    "copies", "transient_mib", "first_transient_mib", "state",
)  # fmt: skip


def summary(content: Mapping[str, Any], ended: str | None) -> tuple[str, bool]:
    """The table of a record, and whether a case failed.

    ended: why the process did not complete; None if it did.
    """
    machine, records = content["machine"], content["records"]
    device, torch, date = map(machine.get, ("device", "torch", "date"))
    measured = [record for record in records if "ms" in record]
    printed = [{key: short(record.get(key)) for key in SHOWN} for record in measured]
    title = f"cost ({device}, torch {torch}, {date})"
    remarks = remarks_with("failed", "FAILED ", records)
    if ended is not None:
        remarks.append(f"FAILED   the process {ended}")
    has_failures = bool(remarks)
    remarks += remarks_with("skipped", "skipped", records)
    measurements = f"{title}\n{table(printed)}" if printed else f"{title}: nothing"
    return "\n".join([measurements, *remarks]), has_failures


def remarks_with(status: str, word: str, records: Sequence[Record]) -> list[str]:
    """A line for each record with a status: the case, and why it has that status."""
    return [
        f"{word}  {record['network']}, {record['optimizer']}: {record['note']}"
        for record in records
        if record["status"] == status
    ]


def short(value: Any) -> Any:
    """A number with four digits; other values as they are."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value
