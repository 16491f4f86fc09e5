from dataclasses import dataclass

import pytest

from harness.settings import check_counts, check_settings, named_settings


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


@pytest.mark.parametrize(
    ("stored", "requested", "difference"),
    [
        ({"a": 3, "b": [1, 2]}, {"a": 4, "b": (2,)}, "a 3, got 4, b [1, 2], got [2]"),
        ({}, {"steps": 3}, "steps None, got 3"),
        ({"steps": 3}, {}, "steps 3, got None"),
    ],
)
def test_differences_of_settings_are_named(stored, requested, difference):
    with pytest.raises(ValueError) as error:
        check_settings("file 'a'", stored, requested)
    assert str(error.value) == f"file 'a': made with other settings: {difference}"


def test_settings_are_compared_as_json():
    check_settings("file 'a'", {"sizes": [1, 2]}, {"sizes": (1, 2), "limit": None})
