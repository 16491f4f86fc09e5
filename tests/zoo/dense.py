"""Networks of linear layers, and of bare weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DeepSets(nn.Module):
    """Equivariant linear layers on sets: every element on its own,
    and their mean (Zaheer et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.own = nn.Linear(3, 5)
        self.mean = nn.Linear(3, 5, bias=False)
        self.own2 = nn.Linear(5, 4)
        self.mean2 = nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.own(x) + self.mean(x.mean(1, keepdim=True)))
        return self.own2(x) + self.mean2(x.mean(1, keepdim=True))


class Triplane(nn.Module):
    """Three feature planes that are sampled at projected coordinates,
    then an MLP (Chan et al. 2022)."""

    def __init__(self):
        super().__init__()
        self.planes = nn.Parameter(torch.randn(3, 4, 5, 5))
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        coordinates = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]]).unsqueeze(
            1
        )
        # (3, 4, 1, n)
        features = F.grid_sample(self.planes, coordinates, align_corners=True)
        return self.mlp(features.sum(0).squeeze(1).T)


class Gated(nn.Module):
    """SwiGLU, a bilinear layer, a weight used twice, raw weights handed to functions,
    a learned temperature."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.gate = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)
        self.bilinear = nn.Bilinear(4, 4, 3)
        self.raw = nn.Parameter(torch.randn(4, 4))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        x = torch.tanh(x @ self.raw)
        x = torch.tanh(F.linear(x, self.raw))
        return self.bilinear(x, x.sin()) * self.temperature


class Shared(nn.Module):
    """Layers that two halves of the neurons share: a linear one,
    and a convolution with the halves in the batch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.linear = nn.Linear(3, 4)
        self.conv = nn.Conv1d(4, 2, 3, padding=1)
        self.hidden = nn.Linear(4, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        x = torch.tanh(self.linear(torch.tanh(self.stem(x)).view(b, t, 2, 3)))
        x = self.conv(x.permute(0, 2, 3, 1).reshape(2 * b, 4, t)).view(b, 4, t)
        return self.out(torch.tanh(self.hidden(torch.tanh(x).transpose(1, 2))))


class Overlapping(nn.Module):
    """Slices of one weight and of its bias, some of whose elements are in several of
    them, others in one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.out = nn.Linear(12, 2)
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        whole = F.linear(x, self.weight, self.bias)
        narrow = F.linear(x[..., :4], self.weight[:, :4])
        corner = F.linear(x[..., 3:], self.weight[3:, 3:], self.bias[3:])
        return self.out(torch.tanh(torch.cat([whole, narrow, corner], -1)))


class Siren(nn.Module):
    """A field with sines between its layers (Sitzmann et al. 2020)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 5)
        self.second = nn.Linear(5, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(3 * self.second(torch.sin(3 * self.first(x)))))


class VariationalAutoencoder(nn.Module):
    """Mean and variance of the latents from two layers; without noise,
    which would differ between neurons."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5, 4)
        self.mean = nn.Linear(4, 3)
        self.variance = nn.Linear(4, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.encoder(x))
        mean = self.mean(x)
        log_variance = self.variance(x)
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(
            -1
        )
        return self.decoder(mean + 0.3 * torch.exp(0.5 * log_variance)), divergence


class TiedAutoencoder(nn.Module):
    """The decoder has the encoder's weight, transposed."""

    def __init__(self, inputs: int = 5, hidden: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, inputs))
        self.before = nn.Parameter(torch.randn(hidden))
        self.behind = nn.Parameter(torch.randn(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(
            torch.sigmoid(F.linear(x, self.weight, self.before)),
            self.weight.t(),
            self.behind,
        )


class Coupling(nn.Module):
    """RealNVP: a masked half of the inputs scales and shifts the other,
    twice (Dinh et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 0.0]))
        self.scale = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4)) for _ in range(2)
        )
        self.shift = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.zeros_like(x[:, 0])
        for mask, scale, shift in zip(
            (self.mask, 1 - self.mask), self.scale, self.shift, strict=True
        ):
            kept = x * mask
            log_scale = scale(kept) * (1 - mask)
            x = kept + (1 - mask) * (x * torch.exp(log_scale) + shift(kept))
            volume = volume + log_scale.sum(-1)
        return x, volume


class Splines(nn.Module):
    """A layer of a Kolmogorov-Arnold network:
    a learned function on every edge (Liu et al. 2024)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.base = nn.Parameter(torch.randn(outputs, inputs))
        self.coefficients = nn.Parameter(torch.randn(outputs, inputs, 3))
        self.register_buffer("grid", torch.linspace(-1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2))
        return F.linear(F.silu(x), self.base) + torch.einsum(
            "bif,oif->bo", basis, self.coefficients
        )


class LowRank(nn.Module):
    """A frozen layer with an adapter of two factors beside it (Hu et al. 2022)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.frozen = nn.Linear(5, 4).requires_grad_(False)
        self.out = nn.Linear(4, 2)
        self.a = nn.Parameter(torch.randn(2, 5))
        self.b = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.out(
            F.relu(self.frozen(x) + 0.5 * F.linear(F.linear(x, self.a), self.b))
        )


class Repeated(nn.Module):
    """One residual block three times, as in ALBERT; recomputed in the backward pass."""

    def __init__(self, times: int = 3, width: int = 4):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.out = nn.Linear(width, 2)
        self.times = times
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 5), nn.GELU(), nn.Linear(5, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.times):
            x = x + checkpoint(self.block, x, use_reentrant=False)
        return self.out(x)


class Experts(nn.Module):
    """A mixture of experts whose outputs are stacked and weighed by a softmax (Shazeer
    et al. 2017)."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.stem = nn.Linear(2, width)
        self.gate = nn.Linear(width, 3)
        self.out = nn.Linear(width, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4), nn.GELU(), nn.Linear(4, width))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = self.gate(x).softmax(-1)
        return self.out(
            (
                weights.unsqueeze(-1)
                * torch.stack([expert(x) for expert in self.experts], 1)
            ).sum(1)
        )


class Sign(torch.autograd.Function):
    """The sign, with a gradient that passes straight through."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class Dynamic(nn.Module):
    """Inputs by name, a branch that depends on values, a function of someone's own."""

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(3, 5)
        self.classes = nn.Embedding(4, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        x = self.features(inputs["features"]) + self.classes(inputs["class"])
        x = torch.tanh(x) if x.mean() > 1e6 else F.relu(x)
        return self.out(Sign.apply(x) + x)


class Complex(nn.Module):
    """A complex weight, and the absolute values of what it gives."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.out = nn.Linear(5, 2)
        self.weight = nn.Parameter(torch.randn(5, 4, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.stem(x).to(self.weight.dtype) @ self.weight.t()).abs())
