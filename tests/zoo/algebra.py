"""Sums, products, statistics, computed weights, parts in another mode."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Standardised(nn.Module):
    """Statistics of neurons, as in a norm that is written by hand: norms, moments and
    extremes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.wide = nn.Linear(6, 5)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.wide(x / x.norm(p=1, dim=-1, keepdim=True))
        deviation, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
        bound = torch.linalg.norm(x, dim=2).logsumexp(1)[:, None, None]
        return self.out(
            torch.cat([x / deviation * bound, mean * x.amax(2, keepdim=True)], -1)
        )


class Regions(nn.Module):
    """Parts that run in another mode: without gradients, in another precision,
    with a checkpoint."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.exact, self.last = (
            nn.Linear(n, m) for n, m in ((3, 4), (4, 5), (5, 6), (6, 2))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.first, x, use_reentrant=False)
        with torch.autocast("cpu", enabled=False):
            with torch.no_grad():
                frozen = torch.relu(self.frozen(x))
            x = torch.tanh(self.exact(frozen))
        return self.last(x) * frozen.mean(-1, keepdim=True)


class Dueling(nn.Module):
    """Channels less their mean, one layer less another, a sum with the neurons
    reversed, a dueling head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 3, padding=1)
        self.depthwise = nn.Conv1d(4, 4, 3, groups=4, padding=1)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(4, 6)
        self.advantage = nn.Linear(6, 3)
        self.value = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.tanh(self.depthwise(x - x.mean(1, keepdim=True))).mean(-1)
        x = torch.tanh(self.up(x) - self.down(x))
        x = torch.tanh(x + 2 * x.flip(-1))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


class Selective(nn.Module):
    """One step of a selective state space, whose states are pairs of a channel and a
    direction, then two shifts."""

    def __init__(self):
        super().__init__()
        self.step = nn.Linear(4, 3)
        self.write = nn.Linear(4, 2)
        self.read = nn.Linear(4, 2)
        self.rate = nn.Parameter(torch.randn(3, 2))
        self.table = nn.Parameter(torch.randn(2, 3))
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        decay = torch.exp(-F.softplus(self.step(x))[..., None] * self.rate)
        x = (
            (decay * self.write(x)[..., None, :]).cumsum(1) * self.read(x)[..., None, :]
        ).sum(-1)
        scale, shift = (self.table + x.mean(1, keepdim=True)).chunk(2, dim=1)
        return self.out(torch.tanh(x * scale + shift))


class Mixture(nn.Module):
    """Experts, all of them weighted by a gate, between two graph convolutions,
    whose adjacency is an input."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(5, 2)
        self.gate = nn.Linear(4, 3)
        self.experts = nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x, adjacency = x[..., :3], x[..., 3:]
        x = torch.tanh(adjacency @ self.first(x))
        outputs = torch.einsum("btd,edf->btef", x, self.experts)
        x = torch.einsum("bte,btef->btf", self.gate(x).softmax(-1), torch.tanh(outputs))
        return self.last(adjacency @ x)


class Generator(nn.Module):
    """A learned constant map that a style scales,
    and a last layer whose weights and biases another layer makes."""

    def __init__(self):
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 3, 2, 2))
        self.code = nn.Parameter(torch.randn(2))
        self.style = nn.Linear(5, 3)
        self.conv = nn.Conv2d(3, 4, 2, padding=1)
        self.make = nn.Linear(2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (
            self.constant.expand(len(x), -1, -1, -1)
            * torch.tanh(self.style(x))[:, :, None, None]
        )
        made = self.make(self.code)
        return F.linear(
            torch.tanh(self.conv(x)).mean((2, 3)), made[:8].view(2, 4), made[8:]
        )


class RepeatedChannels(nn.Module):
    """Channels that come twice, all in turn in front of a convolution,
    one by one in front of a depthwise one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(2, 3, 3, padding=1)
        self.conv = nn.Conv1d(6, 4, 3, padding=1)
        self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.out = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.conv(torch.cat([x, x], 1)))
        return self.out(torch.tanh(self.depthwise(x.repeat_interleave(2, 1))))


class Mirrored(nn.Module):
    """Neurons that come again in reversed order, then those of two layers in turn."""

    def __init__(self):
        super().__init__()
        self.stem, self.both, self.mixed, self.out = (
            nn.Linear(n, m) for n, m in ((3, 4), (8, 4), (8, 3), (3, 2))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        y = torch.tanh(self.both(torch.cat([x, x.flip(-1)], -1)))
        return self.out(torch.tanh(self.mixed(torch.stack([x, y], -1).flatten(-2))))
