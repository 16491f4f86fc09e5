import multiprocessing
from functools import partial

import pytest

from harness import distributed


@pytest.fixture
def forked(monkeypatch):
    """Processes are forked from a server that has imported torch, and need not import
    it."""
    multiprocessing.set_forkserver_preload(
        ["meta_train.training.train", "meta_train.comparison.runs"]
    )
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: context)
    config = partial(distributed.LaunchConfig, start_method="forkserver")
    monkeypatch.setattr(distributed, "LaunchConfig", config)
