import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("torchvision")


pytest.importorskip("transformers")

from ngopt import parameter_roles


class Normed(nn.Module):
    """A norm written by hand, then a factor that is none."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.stem = nn.Linear(3, 6)
        self.head = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))
        self.shift = nn.Parameter(torch.zeros(6))
        self.factor = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.factor * self.norm(x, self.scale, self.shift).relu())


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
    roles = parameter_roles(Normed(norm), torch.randn(2, 5, 3))
    names_of_roles = [roles[name].role for name in ("scale", "shift", "factor")]
    assert names_of_roles == ["norm", "norm", "other"]


def test_a_norm_of_each_head():
    """As that of queries and keys in Qwen3: one scale for all heads."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(3, 6)
            self.head = nn.Linear(6, 2)
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            heads = self.stem(x).unflatten(-1, (3, 2))
            heads = self.scale * (heads * torch.rsqrt(_mean(heads**2) + 1e-6))
            return self.head(heads.flatten(-2))

    assert parameter_roles(Heads(), torch.randn(2, 5, 3))["scale"].role == "norm"


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
    roles = [
        parameter_roles(network(layer), example) for layer in (nn.Conv2d, Standardized)
    ]
    assert roles[0] == roles[1]


def test_a_scale_alone_is_no_norm():
    model = Normed(lambda x, scale, shift: x * scale)
    assert parameter_roles(model, torch.randn(2, 3))["scale"].role == "other"
