"""Networks put together at random: every one has a graph, whole and symmetric."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ngopt import build_graph
from ngopt.graph.views.parameter_graph import parameter_graph
from tests.graph_checks import check, check_symmetries
from tests.zoo import Attention

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Identity, nn.PReLU)


class Branches(nn.Module):
    """Sum, product or concatenation of two branches of the same input."""

    def __init__(self, a: nn.Module, b: nn.Module, how: str):
        super().__init__()
        self.a, self.b, self.how = a, b, how

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.how == "cat":
            return torch.cat([a, b], dim=1 if x.dim() == 4 else -1)
        return a + b if self.how == "add" else a * b


class Positional(nn.Module):
    def __init__(self, *shape: int):
        super().__init__()
        self.parameter = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parameter


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.channel_shuffle(x, 2)


class Head(nn.Module):
    """Leaves feature maps: by pooling, or by flattening them."""

    def __init__(self, flatten: bool, inputs: int):
        super().__init__()
        self.flatten, self.linear = flatten, nn.Linear(inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) if self.flatten else x.mean((2, 3)))


def same_size(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Conv2d:
    """A convolution that keeps the size in space."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


@st.composite
def convolutional(draw) -> tuple[nn.Module, Tensor]:
    """A network on images (2, c, 6, 6), whose size in space never changes."""
    channels = draw(st.sampled_from([1, 2, 3]))
    width = 4
    layers: list[nn.Module] = [same_size(channels, 4, bias=draw(st.booleans()))]
    kinds = "conv depthwise grouped norm act branch skip shuffle up".split()
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(kinds))
        if kind == "conv":
            new = draw(st.sampled_from([2, 4, 6]))
            kernel = draw(st.sampled_from([1, 3, 5]))
            layers.append(same_size(width, new, kernel, bias=draw(st.booleans())))
            width = new
        elif kind == "depthwise":
            layers.append(same_size(width, width, groups=width))
        elif kind == "grouped":
            layers.append(same_size(width, 4, groups=2))
            width = 4
        elif kind == "norm":
            instance = nn.InstanceNorm2d(width, affine=True)
            norms = [nn.BatchNorm2d(width), nn.GroupNorm(2, width), instance]
            layers.append(draw(st.sampled_from(norms)))
        elif kind == "act":
            layers.append(draw(st.sampled_from(ACTIVATIONS))())
        elif kind == "branch":
            how = draw(st.sampled_from(["add", "mul", "cat"]))
            layers.append(Branches(same_size(width, 4), nn.Conv2d(width, 4, 1), how))
            width = 8 if how == "cat" else 4
        elif kind == "skip":
            how = draw(st.sampled_from(["add", "cat"]))
            inner = nn.Sequential(same_size(width, width), nn.Tanh())
            layers.append(Branches(nn.Identity(), inner, how))
            width *= 2 if how == "cat" else 1
        elif kind == "shuffle":
            layers.append(Shuffle())
        else:
            layers.append(nn.ConvTranspose2d(width, 4, 3, padding=1))
            width = 4
    flatten = draw(st.booleans())
    layers.append(Head(flatten, width * 36 if flatten else width))
    return nn.Sequential(*layers), torch.randn(2, channels, 6, 6)


@st.composite
def sequential_tokens(draw) -> tuple[nn.Module, Tensor]:
    """A network on sequences (2, 5, 4) or token numbers."""
    width = draw(st.sampled_from([4, 6]))
    embedded = draw(st.booleans())
    first = nn.Embedding(7, width) if embedded else nn.Linear(3, width)
    layers: list[nn.Module] = [first]
    if draw(st.booleans()):
        layers.append(Positional(5, width))
    kinds = "attention mlp norm rms gate recurrent encoder".split()
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        if kind == "attention":
            attention = Attention(width, 2, fused=draw(st.booleans()))
            inner = nn.Sequential(nn.LayerNorm(width), attention)
            layers.append(Branches(nn.Identity(), inner, "add"))
        elif kind == "mlp":
            act = draw(st.sampled_from(ACTIVATIONS[:5]))()
            inner = nn.Sequential(nn.Linear(width, 8), act, nn.Linear(8, width))
            is_residual = draw(st.booleans())
            skip = Branches(nn.Identity(), inner, "add")
            layers.append(skip if is_residual else inner)
        elif kind == "norm":
            layers.append(nn.LayerNorm(width, bias=draw(st.booleans())))
        elif kind == "rms":
            layers.append(nn.RMSNorm(width))
        elif kind == "gate":
            gate = nn.Sequential(nn.Linear(width, 6), nn.SiLU())
            layers += [Branches(gate, nn.Linear(width, 6), "mul"), nn.Linear(6, width)]
        elif kind == "encoder":
            options = {"batch_first": True, "norm_first": draw(st.booleans())}
            layers.append(
                nn.TransformerEncoderLayer(width, 2, 8, dropout=0.0, **options)
            )
        else:
            recurrent = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
            layers.append(First(recurrent(width, width, batch_first=True)))
    layers.append(nn.Linear(width, 2))
    example = torch.randint(7, (2, 5)) if embedded else torch.randn(2, 5, 3)
    return nn.Sequential(*layers), example


class First(nn.Module):
    def __init__(self, rnn: nn.Module):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


@st.composite
def networks(draw) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(draw(st.integers(0, 9)))
    model, example = draw(st.one_of(convolutional(), sequential_tokens()))
    return model.double(), example.double() if example.is_floating_point() else example


COMMON = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "database": None,
}


@pytest.mark.slow
@settings(max_examples=15, **COMMON)
@given(networks())
def test_random_networks(network):
    check(network)


@pytest.mark.thorough
@settings(max_examples=5000, **{**COMMON, "derandomize": False})
@given(networks())
def test_many_random_networks(network):
    check(network)
    check_symmetries(network, parameter_graph(build_graph(*network)))
