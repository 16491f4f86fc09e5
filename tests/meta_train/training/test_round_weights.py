"""Rounded mantissas, worked out by hand."""

import pytest
import torch

from meta_train.training.round_weights import Config, round_mantissa, run
from ngopt import load_pretrained
from ngopt.metanets import FeedForward
from ngopt.metanets.feedforward import FeedForwardConfig
from ngopt.pretrained import save_pretrained, weights_hash
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


def test_nearest_and_ties_to_even():
    """With 2 bits of mantissa, values from 1 to 2 are multiples of 1/4."""
    x = torch.tensor([1.1, 1.125, 1.375, 1.13, 1.99, -1.2, 0.0, 3e-20])
    found = round_mantissa(x, 2)
    assert found[:7].tolist() == [1.0, 1.0, 1.5, 1.25, 2.0, -1.25, 0.0]
    assert abs(found[7] / x[7] - 1) <= 2**-3


def test_a_rounded_file_names_its_weights(tmp_path, capsys):
    torch.manual_seed(0)
    metanet = FeedForward(FeedForwardConfig(hidden=(4,), output_scale=0.5))
    source, output = tmp_path / "one.safetensors", tmp_path / "rounded.safetensors"
    save_pretrained(LearnedOptimizer(metanet), source)
    run(Config(str(source), str(output), bits=19))
    assert "relative change" in capsys.readouterr().out
    old, new = load_pretrained(source), load_pretrained(output)
    assert new.recipe["stages"][-1] == {
        "program": "meta_train.training.round_weights",
        "mantissa_bits": 19,
        "rounded_from": weights_hash(old),
    }
    assert new.metanet.config == old.metanet.config
    pairs = zip(old.metanet.parameters(), new.metanet.parameters(), strict=True)
    for before, after in pairs:
        assert (after.view(torch.int32) & 0b1111).eq(0).all()
        torch.testing.assert_close(after, before, rtol=2**-20, atol=0)


@pytest.mark.parametrize("bits", [0, 23])
def test_bits_are_those_of_float32(bits):
    with pytest.raises(ValueError, match="bits: expected 1 to 22"):
        Config("ff", "x.safetensors", bits=bits)
