import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Worker processes have one thread; with another number here sums would differ in their last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
