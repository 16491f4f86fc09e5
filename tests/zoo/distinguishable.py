"""Networks in which something other than a weight tells neurons apart: constants,
functions, places."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sinusoidal(nn.Module):
    """Sinusoidal positions, and attention with another slope for every head (Press et
    al. 2022)."""

    def __init__(self, width: int = 4, length: int = 5):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, 2)
        angles = torch.arange(length)[:, None] / 10.0 ** torch.arange(0, 1, 2 / width)
        self.register_buffer(
            "table", torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
        )
        self.register_buffer("slopes", torch.tensor([0.5, 0.25]).reshape(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x) + self.table)
        q, k, v = (
            y.unflatten(-1, (2, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1)
        )
        places = torch.arange(x.shape[1])
        distance = -(places[:, None] - places).abs()
        weights = (q @ k.mT + self.slopes * distance).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Rotary(nn.Module):
    """Rotary positions of two heads (Su et al. 2021): halves of the queries,
    pairs of the keys as complex numbers."""

    def __init__(self, heads: int = 2, size: int = 4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(3, heads * size) for _ in range(3))
        self.out = nn.Linear(heads * size, 2)
        self.frequencies = [1.0 / 10 ** (2 * i / size) for i in range(size // 2)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.q, self.k, self.v)
        )
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.tensor(
            self.frequencies, dtype=x.dtype
        )
        a, b = q.chunk(2, -1)
        wide = angles.repeat(1, 2)
        q = q * wide.cos() + torch.cat([-b, a], -1) * wide.sin()
        turned = torch.view_as_complex(
            k.unflatten(-1, (-1, 2)).contiguous()
        ) * torch.polar(angles * 0 + 1, angles)
        k = torch.view_as_real(turned).flatten(-2)
        return self.out(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )


class Parts(nn.Module):
    """Functions of parts of a layer: other activations, a softmax over blocks, a
    running sum, a mask of weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.out = (
            nn.Linear(n, m) for n, m in ((3, 6), (6, 6), (6, 5), (5, 2))
        )
        self.register_buffer(
            "mask", (torch.arange(6) <= torch.arange(5)[:, None]).double()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(torch.cat([torch.relu(x[..., :2]), torch.tanh(x[..., 2:])], -1))
        x = x.unflatten(-1, (2, 3)).softmax(-1).flatten(-2)
        x = torch.tanh(F.linear(x, self.third.weight * self.mask, self.third.bias))
        return self.out(x + x.cumsum(-1))


class Normalised(nn.Module):
    """Weights under a norm: for every row (Salimans and Kingma 2016), standardised by
    hand, with noise of their own."""

    def __init__(self):
        super().__init__()
        self.rows = nn.utils.parametrizations.weight_norm(nn.Linear(3, 5))
        self.maps = nn.utils.parametrizations.weight_norm(nn.Conv1d(5, 4, 2))
        self.weight, self.noise = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.maps(torch.tanh(self.rows(x)).mT)).mT
        weight = (self.weight - self.weight.mean(1, keepdim=True)) / self.weight.std(
            1, keepdim=True
        )
        return self.out(torch.tanh(F.linear(x, weight + 0.1 * self.noise)))


class Mixer(nn.Module):
    """Layers over places as well as over channels (Tolstikhin et al. 2021),
    and a spectrum over places."""

    def __init__(self, width: int = 4, places: int = 5):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norm = nn.LayerNorm(width)
        self.tokens = nn.Sequential(
            nn.Linear(places, 6), nn.GELU(), nn.Linear(6, places)
        )
        self.channels = nn.Sequential(
            nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width)
        )
        self.gate = nn.Conv1d(places, places, 1)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.tokens(self.norm(x).mT).mT
        x = x + torch.fft.fft(x, dim=1).real
        return self.out(self.gate(x) * self.channels(x))


class Equilibrium(nn.Module):
    """A layer that is applied to its own result from zero on,
    behind random Fourier features; another leads nowhere."""

    def __init__(self):
        super().__init__()
        self.register_buffer("features", torch.randn(2, 3))
        self.first = nn.Linear(6, 5)
        self.again = nn.Linear(5, 5)
        self.out = nn.Linear(5, 2)
        self.unused = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.features
        x = self.first(torch.cat([x.sin(), x.cos()], -1))
        state = torch.zeros_like(x)
        for _ in range(3):
            state = torch.tanh(self.again(state) + x)
        self.unused(state)
        return self.out(state)
