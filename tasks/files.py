"""JSON files that are there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ngopt.files import replaced


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    with replaced(path) as part, part.open("w") as file:
        json.dump(value, file, allow_nan=False)
