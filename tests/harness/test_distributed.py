import pytest

from harness.distributed import run_on_ranks


def test_a_rank_works_in_its_process_and_others_are_checked_first(monkeypatch):
    configs = []

    def check(config):
        raise ValueError("checked")

    run_on_ranks(1, configs.append, "config", check)
    monkeypatch.setenv("RANK", "1")
    run_on_ranks(2, configs.append, "config", check)
    assert configs == ["config", "config"]
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="checked"):
        run_on_ranks(2, configs.append, "config", check)
