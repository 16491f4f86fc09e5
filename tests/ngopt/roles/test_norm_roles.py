import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

pytest.importorskip("torchvision")

pytest.importorskip("transformers")

from ngopt import parameter_roles
from ngopt.graph.connectivity import unconnected
from ngopt.roles.from_graph import roles_of
from tests.graph_checks import check
from tests.networks import FromFunction


def normed(norm):
    """A norm written by hand, then a factor that is none."""
    vectors = {
        name: nn.Parameter(torch.ones(6)) for name in ("scale", "shift", "factor")
    }

    def forward(m, x):
        x = m.stem(x)
        return m.head(x + m.factor * norm(x, m.scale, m.shift).relu())

    return FromFunction(forward, stem=(3, 6), head=(6, 2), **vectors)


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, scale, shift: scale * x * torch.rsqrt(_mean(x**2) + 1e-6) + shift,
        lambda x, scale, shift: (
            scale * (x - _mean(x)) / x.std(-1, keepdim=True) + shift
        ),
        lambda x, scale, shift: F.normalize(x, dim=-1) * scale + shift,
        lambda x, scale, shift: (
            F.rms_norm(x, (6,)).double().float() * (1 + scale) + shift
        ),
        lambda x, scale, shift: F.layer_norm(x, (6,), scale, shift),
    ],
    ids=["rms", "layer", "length", "weightless", "function"],
)
def test_norms_written_with_operators_have_the_role_norm(norm):
    roles = parameter_roles(normed(norm), torch.randn(2, 5, 3))
    names_of_roles = [roles[name].role for name in ("scale", "shift", "factor")]
    assert names_of_roles == ["norm", "norm", "other"]


def test_a_norm_of_each_head():
    """As that of queries and keys in Qwen3: one scale for all heads."""

    def forward(m, x):
        heads = m.stem(x).unflatten(-1, (3, 2))
        heads = m.scale * (heads * torch.rsqrt(_mean(heads**2) + 1e-6))
        return m.head(heads.flatten(-2))

    scale = nn.Parameter(torch.ones(2))
    model = FromFunction(forward, stem=(3, 6), head=(6, 2), scale=scale)
    assert parameter_roles(model, torch.randn(2, 5, 3))["scale"].role == "norm"


class Standardized(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 (Qiao et al. 2019),
    as in BiT of transformers."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        rows = F.batch_norm(rows, None, None, training=True)
        return F.conv2d(x, rows.reshape_as(self.weight), self.bias)


def test_weights_that_are_standardized_are_weights():
    def network(layer):
        return nn.Sequential(layer(2, 5, 3), nn.ReLU(), layer(5, 4, 3))

    example = torch.randn(2, 2, 9, 9)
    plain = parameter_roles(network(nn.Conv2d), example)
    assert parameter_roles(network(Standardized), example) == plain


class WithGain(nn.Conv2d):
    """A standardised convolution with a gain for each channel (Brock et al. 2021), as
    in timm."""

    def __init__(self, *sizes: int, groups: int = 1):
        super().__init__(*sizes, groups=groups)
        self.gain = nn.Parameter(torch.ones(sizes[1], 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.5).view(-1)
        rows = F.batch_norm(rows, None, None, weight=gain, training=True)
        return F.conv2d(x, rows.reshape_as(self.weight), self.bias, groups=self.groups)


def normalised(dim):
    """Convolutions whose weights have norms of their own."""

    def layer(*sizes, groups=1):
        return weight_norm(nn.Conv2d(*sizes, groups=groups), dim=dim)

    return layer


GAINS = {"gain": WithGain, "rows": normalised(0), "whole": normalised(None)}
GAINS["places"] = normalised(2)  # of the kernel, as in wav2vec 2.0


@pytest.mark.parametrize("name", GAINS)
def test_gains_of_weights_are_factors_traced_and_by_name(name):
    layer = GAINS[name]
    model = nn.Sequential(layer(2, 6, 2), nn.ReLU(), layer(6, 4, 2, groups=2)).double()
    graph = check((model, torch.randn(2, 2, 5, 5, dtype=torch.double)))
    assert not unconnected(graph)
    by_name = parameter_roles(model.named_parameters())
    for traced in roles_of(graph):
        assert traced.role == by_name[traced.name].role
        is_gain = traced.name.endswith(("gain", "original0"))
        assert (traced.role == "other") == is_gain


def test_a_scale_alone_is_no_norm():
    model = normed(lambda x, scale, shift: x * scale)
    assert parameter_roles(model, torch.randn(2, 3))["scale"].role == "other"
