"""JSON files that are there whole or not at all, and the numbers that they can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ngopt.files import replaced


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file."""
    with replaced(path) as part, part.open("w") as file:
        json.dump(value, file, allow_nan=False)


def finite(value: float) -> float | None:
    """None in place of inf and nan, which JSON does not have."""
    return value if math.isfinite(value) else None
