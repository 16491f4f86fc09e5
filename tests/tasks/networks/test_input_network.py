import pytest
import torch

from tasks.networks.input_network import NeuronDropout


def test_dropout_drops_whole_neurons_and_scales_the_others():
    torch.manual_seed(0)
    x = torch.ones(50, 400, 3)
    drop = NeuronDropout(0.25, axis=1)
    factors = drop(x)
    torch.testing.assert_close(factors, factors[:, :, :1].expand_as(x))
    assert factors.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (factors == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    # of every image others
    assert not torch.equal(factors[0], factors[1])
    assert torch.equal(drop.eval()(x), x)
