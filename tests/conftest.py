import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """As the programs have: with more, sums differ in their last digits,
    and a busy core slows tests ten-fold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
