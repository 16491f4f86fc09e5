"""Checks and selects the settings of programs."""

from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any


def check_counts(config: Any, *keys: str) -> None:
    """Raises ValueError for a field that is below 1; None is allowed."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ValueError(f"{key}: expected 1 or more; got {value}")


def check_choice(key: str, value: Any, known: Iterable[str]) -> None:
    """Raises ValueError for a value that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{key}: expected one of {', '.join(known)}; got '{value}'")


def named_settings(config: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass by name, without some of them."""
    return {key: value for key, value in asdict(config).items() if key not in without}
