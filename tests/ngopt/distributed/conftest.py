import pytest


@pytest.fixture(autouse=True, scope="session")
def _forked(forkserver):
    """Before module-scoped fixtures, which start processes."""
