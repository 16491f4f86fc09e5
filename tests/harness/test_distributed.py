import pytest

from harness.distributed import on_ranks


def test_a_rank_works_where_it_is(monkeypatch):
    found = []

    def check(config):
        raise ValueError("checked")

    on_ranks(1, found.append, "config", check)
    monkeypatch.setenv("RANK", "1")
    on_ranks(2, found.append, "config", check)
    assert found == ["config", "config"]
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="checked"):
        on_ranks(2, found.append, "config", check)
