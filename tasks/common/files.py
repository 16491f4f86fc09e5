"""JSON files that are there whole or not at all,
and how settings differ from those that they record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngopt.files import replaced


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    with replaced(path) as part, part.open("w") as file:
        json.dump(value, file, allow_nan=False)


def differences(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Settings that are not those known, in words; "" if all are."""
    odd = sorted(key for key in {*known, *asked} if known.get(key) != asked.get(key))
    return ", ".join(f"{key} {known.get(key)!r}, got {asked.get(key)!r}" for key in odd)
