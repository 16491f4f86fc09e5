import pytest

from harness.checkpoint import Checkpoint


def test_checkpoints_are_read_back_and_some_settings_may_change(tmp_path):
    settings = {"lr": 0.1, "steps": 3}
    assert Checkpoint(tmp_path, settings).read() is None
    Checkpoint(tmp_path, settings).write({"model": {}})
    assert Checkpoint(tmp_path, settings).read() == {"model": {}}
    longer = {"lr": 0.1, "steps": 4}
    assert Checkpoint(tmp_path, longer, ("steps",)).read() == {"model": {}}
    with pytest.raises(ValueError, match="checkpoint.pt': made with other.*steps 3"):
        Checkpoint(tmp_path, longer).read()
