"""Checks and selects the settings of programs."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any


def check_counts(config: Any, *keys: str) -> None:
    """Raises ValueError for a field that is below 1; None is allowed."""
    for key in keys:
        value = getattr(config, key)
        check_setting(value is None or value >= 1, key, "1 or more", value)


def check_setting(is_valid: bool, key: str, expected: str, value: Any) -> None:
    """Raises ValueError for a value that is not as expected."""
    if not is_valid:
        raise ValueError(f"{key}: expected {expected}; got {value}")


def check_choice(key: str, value: Any, known: Iterable[str]) -> None:
    """Raises ValueError for a value that is none of the known ones."""
    check_setting(value in known, key, f"one of {', '.join(known)}", f"'{value}'")


def named_settings(config: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass by name, except those of `without`."""
    return {key: value for key, value in asdict(config).items() if key not in without}


def check_settings(
    what: str, stored: Mapping[str, Any], requested: Mapping[str, Any]
) -> None:
    """Raises ValueError, which names `what`, if settings differ, compared as JSON."""
    stored, requested = json.loads(json.dumps([stored, requested]))
    differences = []
    for key in sorted({*stored, *requested}):
        old, new = stored.get(key), requested.get(key)
        if old != new:
            differences.append(f"{key} {old!r}, got {new!r}")
    if differences:
        raise ValueError(f"{what}: made with other settings: {', '.join(differences)}")
