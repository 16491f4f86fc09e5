import pytest

from harness.checkpoint import Checkpoint, check_settings


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


def test_checkpoints_are_read_back_and_some_settings_may_change(tmp_path):
    settings = {"lr": 0.1, "steps": 3}
    assert Checkpoint(tmp_path, settings).read() is None
    Checkpoint(tmp_path, settings).write({"model": {}})
    assert Checkpoint(tmp_path, settings).read() == {"model": {}}
    longer = {"lr": 0.1, "steps": 4}
    assert Checkpoint(tmp_path, longer, ("steps",)).read() == {"model": {}}
    with pytest.raises(ValueError, match="checkpoint.pt': made with other.*steps 3"):
        Checkpoint(tmp_path, longer).read()
