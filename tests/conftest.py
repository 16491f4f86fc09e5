import gc
import multiprocessing
from multiprocessing import forkserver as server

import pytest
import torch

# what each forked process would import by itself otherwise, in about a second
PRELOADED = [
    "tests.processes",
    "meta_train.comparison.runs",
    "meta_train.training.train",
    "pytest",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
]


def pytest_collection():
    """Disables garbage collection during imports, whose objects nearly all stay."""
    gc.disable()


def pytest_collection_finish():
    # later collections would visit all imported objects again
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread, as in the programs: with more, sums differ in their last digits, and
    a busy core slows tests ten-fold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def forkserver():
    """Processes of tests are forked from a server that has imported what they need.

    There is one server, with the imports that it starts with. No GPU is visible there.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        server.ensure_running()
