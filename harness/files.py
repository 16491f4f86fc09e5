"""Reads and writes JSON files, JSON lines and checkpoints. Errors name the file.

JSON lines are records of the finished parts of a run, from which it resumes.
"""

import gzip
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ngopt.pretrained.tensor_files import atomic_write


def make_folder(path: Path) -> None:
    """Makes a folder if there is none. Raises ValueError if there is a file."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"folder '{path}': expected a folder; got a file") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, with null for inf and nan, which JSON does not have."""
    with atomic_write(path) as part, part.open("w") as file:
        json.dump(without_nan(value), file, allow_nan=False)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises ValueError for anything else.

    what: name of the kind of file in the error message.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{what} '{path}': expected JSON; got: {error}") from None


def read_checkpoint(path: Path, trusted: bool = False) -> dict[str, Any]:
    """A dictionary that torch.save wrote.

    trusted: the file may hold any Python object, and tensors stay on their devices.
    Otherwise it may hold tensors and plain values alone, which are put on the CPU.

    Raises ValueError, which names the file, if it cannot be read or holds anything
    else.
    """
    try:
        device = None if trusted else "cpu"
        state = torch.load(path, map_location=device, weights_only=not trusted)
    except Exception as error:  # the unpickler raises many types
        reason = str(error).partition(". ")[0].partition("\n")[0]
        expected = "tensors and plain values of torch.save"
        raise ValueError(
            f"file '{path}': expected {expected}; got: {reason or type(error).__name__}"
        ) from None
    if not isinstance(state, dict):
        got = type(state).__name__
        raise ValueError(f"file '{path}': expected a dictionary; got {got}")
    for key in state:
        if not isinstance(key, str):
            raise ValueError(f"file '{path}': expected names; got {key!r}")
    return state


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


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The records of files of JSON lines, without lines that were cut off. Files that
    end in .gz are compressed."""
    records = []
    for path in filter(Path.exists, paths):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        for line in content.decode().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


def without_nan(value: Any) -> Any:
    """Nested dictionaries and lists with None for inf and nan."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def or_inf(loss: float | None) -> float:
    """A loss of a JSON file, which has None for inf and nan."""
    return math.inf if loss is None else loss
