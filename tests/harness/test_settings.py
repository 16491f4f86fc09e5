from dataclasses import dataclass

import pytest

from harness.settings import check_counts, differences, named_settings


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
    assert named_settings(Settings(), ("limit",)) == {
        "steps": 3,
        "sizes": (1, 2),
    }


def test_differences_are_told():
    known = {"steps": 3, "limit": None, "sizes": [1, 2]}
    assert differences(known, named_settings(Settings())) == ""
    told = differences(known, named_settings(Settings(steps=4, sizes=(2,))))
    assert told == "sizes [1, 2], got [2], steps 3, got 4"


def test_a_setting_of_one_side_alone_is_a_difference():
    assert differences({}, {"steps": 3}) == "steps None, got 3"
    assert differences({"steps": 3}, {}) == "steps 3, got None"
