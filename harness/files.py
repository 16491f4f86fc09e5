"""JSON files and checkpoints: there whole or not at all, and refused by name where they
are not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from ngopt.pretrained.tensor_files import atomic_write


def make_folder(path: Path) -> None:
    """Makes a folder where there is none. Raises ValueError where there is a file."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"folder '{path}': expected a folder; got a file") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    with atomic_write(path) as part, part.open("w") as file:
        json.dump(value, file, allow_nan=False)


def read_json(path: Path, what: str) -> Any:
    """What a JSON file holds.

    what: the file is, for messages. Raises ValueError, which names the file, if it is
    no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{what} '{path}': expected JSON; got: {error}") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A dictionary that torch.save wrote, of tensors and plain values alone.

    Raises ValueError, which names the file, if there is none or if it holds anything
    else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # of bytes that are no such file the unpickler raises whatever it stumbles over
        reason = str(error).partition(". ")[0].partition("\n")[0]
        expected = "tensors and plain values of torch.save"
        raise ValueError(
            f"file '{path}': expected {expected}; got: {reason or type(error).__name__}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(
            f"file '{path}': expected a dictionary; got {type(found).__name__}"
        )
    for key in found:
        if not isinstance(key, str):
            raise ValueError(f"file '{path}': expected names; got {key!r}")
    return found


def finite(value: float) -> float | None:
    """None in place of inf and nan, which JSON does not have."""
    return value if math.isfinite(value) else None
