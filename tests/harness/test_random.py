"""Random numbers from keys."""

import pytest
import torch

from harness.random import derive_seed, seeded


def test_a_key_determines_the_numbers():
    with seeded(1, 2):
        numbers = torch.rand(3)
    torch.rand(5)
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), numbers)
    with seeded(2, 1):
        assert not torch.equal(torch.rand(3), numbers)


def test_numbers_are_those_of_torchs_own_seeds():
    with seeded(7):
        numbers = torch.rand(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(7))
        assert torch.equal(torch.rand(3), numbers)


def test_the_generator_goes_on_as_if_nothing_had_been_drawn():
    before = torch.get_rng_state()
    with seeded(3):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), seeded(3):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
