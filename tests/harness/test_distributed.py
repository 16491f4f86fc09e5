import pytest

from harness.distributed import run_on_ranks


def test_a_rank_works_where_it_is(monkeypatch):
    found = []

    def check(config):
        raise ValueError("checked")

    run_on_ranks(1, found.append, "config", check)
    monkeypatch.setenv("RANK", "1")
    run_on_ranks(2, found.append, "config", check)
    assert found == ["config", "config"]
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="checked"):
        run_on_ranks(2, found.append, "config", check)
