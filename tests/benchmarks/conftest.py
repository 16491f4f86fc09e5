import time

import pytest

from benchmarks.gpu.session import Session


@pytest.fixture
def session(tmp_path):
    """A session of `benchmarks.gpu` on the CPU, with small shapes."""
    return Session("cpu", True, tmp_path, time.monotonic() + 600)
