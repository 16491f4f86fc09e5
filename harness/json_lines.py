"""JSON lines of the finished parts of a run, from which it resumes."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record to a file of JSON lines.

    Several processes may append at once: a line is written by a single call. If the
    last line was cut off, it is ended first.
    """
    line = json.dumps(record, allow_nan=False)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        is_cut = size and os.pread(handle, 1, size - 1) != b"\n"
        prefix = "\n" if is_cut else ""
        os.write(handle, f"{prefix}{line}\n".encode())
    finally:
        os.close(handle)


def _text(path: Path) -> str:
    """The text of a file, "" if there is none."""
    if not path.exists():
        return ""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The records of files of JSON lines, without lines that were cut off.

    Files that end in .gz are compressed.
    """
    records = []
    for path in paths:
        for line in _text(path).splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records
