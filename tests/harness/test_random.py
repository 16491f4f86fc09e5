"""Random numbers keyed by what they are for."""

import pytest
import torch

from harness.random import derive_seed, seeded


def test_a_key_gives_the_same_numbers_wherever_it_is_met():
    with seeded(1, 2):
        found = torch.rand(3)
    torch.rand(5)
    with seeded(1, 2):
        assert torch.equal(torch.rand(3), found)
    with seeded(2, 1):
        assert not torch.equal(torch.rand(3), found)


def test_numbers_are_those_of_torchs_own_seeds():
    with seeded(7):
        found = torch.rand(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(7))
        assert torch.equal(torch.rand(3), found)


def test_the_generator_goes_on_as_if_nothing_had_been_drawn():
    before = torch.get_rng_state()
    with seeded(3):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), seeded(3):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
