"""What benchmarks find: records, printed as a table, and kept with what they were
measured on."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.files import make_folder

Record = dict[str, Any]


def table(records: Sequence[Record]) -> str:
    """One line for each record; the first's keys are the header."""
    rows = [
        list(records[0]),
        *([_cell(x) for x in record.values()] for record in records),
    ]
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("".join(f"{cell:>{width}}" for cell, width in cells))
    return "\n".join(lines)


def write(path: Path | None, **found: list[Record]) -> None:
    """Writes records and their machine as JSON; nothing without a path."""
    if path is None:
        return
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    make_folder(path.parent)
    path.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else value
