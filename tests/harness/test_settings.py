from dataclasses import dataclass

import pytest

from harness.settings import check_counts, named_settings


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)


def test_counts_are_one_or_more():
    check_counts(Settings(), "steps", "limit")
    with pytest.raises(ValueError, match="steps: expected 1 or more; got 0"):
        check_counts(Settings(steps=0), "steps", "limit")


def test_settings_without_those_that_change_no_result():
    assert named_settings(Settings(), ("limit",)) == {"steps": 3, "sizes": (1, 2)}
