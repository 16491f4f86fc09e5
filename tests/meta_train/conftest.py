import multiprocessing
from functools import partial

import pytest
import torch

from harness import distributed
from meta_train.training import train
from ngopt.metanets import FeedForward
from ngopt.pretrained import save_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


@pytest.fixture(autouse=True)
def _updates_of_an_early_step_are_logged(monkeypatch):
    """A hundred steps before them are longer than all else of a short meta-training."""
    monkeypatch.setattr(train, "UPDATE_STEP", 3)


@pytest.fixture
def forked(monkeypatch, forkserver):
    """Ranks and processes are forked, too, not started anew."""
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: context)
    config = partial(distributed.LaunchConfig, start_method="forkserver")
    monkeypatch.setattr(distributed, "LaunchConfig", config)


@pytest.fixture
def ff_weights(tmp_path):
    """The path of a file with random weights of an FF."""
    torch.manual_seed(1)
    path = tmp_path / "ff.safetensors"
    save_pretrained(LearnedOptimizer(FeedForward()), path)
    return str(path)
