"""Settings of programs: what of them matters, and how they differ from those of before."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any


def check_counts(config: Any, *keys: str) -> None:
    """Raises ValueError for a setting of a dataclass that is below 1; None is allowed."""
    for key in keys:
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ValueError(f"{key}: expected 1 or more; got {value}")


def named_settings(config: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass by name, but for some, such as those that change no
    result."""
    return {key: value for key, value in asdict(config).items() if key not in without}


def differences(known: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Settings that are not those known, in words; "" if all are, as JSON holds them."""
    known, asked = (json.loads(json.dumps(settings)) for settings in (known, asked))
    odd = sorted(key for key in {*known, *asked} if known.get(key) != asked.get(key))
    return ", ".join(f"{key} {known.get(key)!r}, got {asked.get(key)!r}" for key in odd)
