from pathlib import Path

import pytest

from tasks import training

DATA = Path(__file__).parent / "data"


@pytest.fixture
def data():
    """Small sets of networks."""
    return DATA


@pytest.fixture
def clock(monkeypatch):
    """Every training step takes a second."""
    now = iter(range(10**6))
    monkeypatch.setattr(training, "process_time", lambda: next(now))
