"""Networks in channels-last format compute the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meta_train.training.unroll import ChannelsLast, channels_last

LAST = torch.channels_last


def test_tensors_of_a_pytree_are_channels_last():
    maps, vector = torch.randn(2, 3, 4, 4), torch.randn(3)
    (kernel,), found = channels_last(([maps], {"bias": vector, "name": "conv"}))
    assert kernel.is_contiguous(memory_format=LAST) and torch.equal(kernel, maps)
    assert found == {"bias": vector, "name": "conv"}


@pytest.mark.parametrize("size", [1, (1, 1), 2, (2, 1)])
@pytest.mark.parametrize("several", [(), (2,)], ids=["one", "a batch"])
def test_pools_and_their_derivatives_are_torchs(several, size):
    maps = torch.randn(*several, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = nn.AdaptiveAvgPool2d(size)(maps)
    with ChannelsLast():
        found = nn.AdaptiveAvgPool2d(size)(maps)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.square().sum(), maps, create_graph=True)
    (other,) = torch.autograd.grad(expected.square().sum(), maps, create_graph=True)
    torch.testing.assert_close(gradient, other)
    (second,) = torch.autograd.grad(gradient.pow(3).sum(), maps)
    torch.testing.assert_close(second, torch.autograd.grad(other.pow(3).sum(), maps)[0])


def test_gradients_of_pooled_maps_are_channels_last():
    maps = channels_last(torch.randn(2, 3, 4, 4)).requires_grad_()
    with ChannelsLast():
        F.adaptive_avg_pool2d(F.relu(maps), 1).square().sum().backward()
    assert maps.grad.is_contiguous(memory_format=LAST)
