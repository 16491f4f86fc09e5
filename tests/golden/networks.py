"""Small networks with fixed weights and batches, which depend on no torch version."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.shapes import Gpt, GptBlock

CLASSES = 5
BATCH = 6
WORDS, LENGTH = 20, 7


def numbers(seed: int, *shape: int) -> Tensor:
    """Normal random numbers in float64."""
    return torch.tensor(np.random.RandomState(seed).standard_normal(shape))


def integers(seed: int, high: int, *shape: int) -> Tensor:
    return torch.tensor(np.random.RandomState(seed).randint(high, size=shape))


def mlp() -> nn.Module:
    hidden = [nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 12), nn.Tanh()]
    return nn.Sequential(
        nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), *hidden, nn.Linear(12, CLASSES)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, CLASSES),
    )


def gpt() -> nn.Module:
    """With tied embeddings and queries, keys and values in one matrix."""
    model = Gpt(WORDS, LENGTH, 24, 3, 2)
    model.lm_head.weight = model.wte.weight
    return model


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, 2, batch_first=True)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)
        hidden, _ = self.gru(hidden)
        return self.last(hidden[:, -1])


class Vit(nn.Module):
    """A vision transformer with a class token, learned positions and GPT-2's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        self.positions = nn.Parameter(torch.zeros(1, 5, 24))
        self.blocks = nn.Sequential(GptBlock(24, 3), GptBlock(24, 3))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.blocks(x + self.positions)
        return self.head(self.norm(x).mean(1))


class Mixture(nn.Module):
    """Grouped and depthwise convolutions, free and complex parameters, and others that
    lack a gradient at times; in float32 also a bfloat16 layer."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(4, 8, 3, groups=2)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.gains = nn.Parameter(torch.ones(8))
        self.spectrum = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))
        self.sometimes = nn.Linear(8, 8)
        self.never = nn.Parameter(torch.ones(3, 3))
        self.coarse = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.grouped(x).relu())
        x = torch.complex(x, x.square())
        pooled = (x[:, :4, :3] * self.spectrum).abs().mean(2)
        y = torch.cat([pooled, x[:, 4:].real.mean(2)], 1) * self.gains * self.scale
        y = self.sometimes(y) + 0 * self.never.sum()
        dtype = self.coarse.weight.dtype
        return self.coarse(y.to(dtype)).to(y.dtype)

    def disturb(self, step: int) -> None:
        """Changes gradients: some are missing, zero or not finite at a step."""
        if step % 3 == 1:
            self.sometimes.weight.grad = None
        if step == 7:
            self.grouped.weight.grad[0, 0, 0] = torch.nan
        if step == 11:
            self.gains.grad.mul_(1e6)
        if step == 13:
            for p in self.parameters():
                p.grad = None


class Table(nn.Module):
    """An embedding table with rare rows, and a parameter with a constant gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 8)
        self.drift = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1)) + 0 * self.drift.sum()

    def disturb(self, step: int) -> None:
        self.drift.grad = torch.ones_like(self.drift)


def wide() -> nn.Module:
    """Kronecker factors in bfloat16, on one side, and none."""
    return nn.Sequential(nn.Linear(8, 520), nn.ReLU(), nn.Linear(520, 1100))


def chain() -> nn.Module:
    """The layers of the bundled metanet "nfn", which other metanets can read too."""
    layers: list[nn.Module] = []
    for inputs in (1, 8, 8):
        layers += [nn.Conv2d(inputs, 8, 3), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    return nn.Sequential(*layers, *head)


class Network(NamedTuple):
    """A network and its inputs by seed. is_traced: whether its graph is traced."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    is_traced: bool = False


NETWORKS = {
    "mlp": Network(mlp, lambda seed: numbers(seed, BATCH, 8)),
    "cnn": Network(cnn, lambda seed: numbers(seed, BATCH, 2, 8, 8)),
    "gpt": Network(gpt, lambda seed: integers(seed, WORDS, BATCH, LENGTH)),
    "lstm": Network(Lstm, lambda seed: numbers(seed, BATCH, 5, 3)),
    "vit": Network(Vit, lambda seed: numbers(seed, BATCH, 3, 8, 8), is_traced=True),
    "mixture": Network(Mixture, lambda seed: numbers(seed, BATCH, 4, 9)),
    "table": Network(Table, lambda seed: integers(seed, 60, BATCH, 3)),
    "wide": Network(wide, lambda seed: numbers(seed, BATCH, 8)),
    "chain": Network(chain, lambda seed: numbers(seed, BATCH, 1, 9, 9)),
}


def network(name: str, dtype: torch.dtype, is_trained: bool = False) -> nn.Module:
    """A network with fixed weights.

    is_trained: whether its matrices have one large singular value, as trained ones do.
    """
    model = NETWORKS[name].make()
    for seed, p in enumerate(model.parameters()):
        weights = _weights(seed, p, is_trained)
        p.data = weights.to(dtype.to_complex() if p.is_complex() else dtype)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.to(dtype)
    if name == "mixture" and dtype == torch.float32:
        model.coarse.bfloat16()
    return model


def _weights(seed: int, p: Tensor, is_trained: bool) -> Tensor:
    values = numbers(seed, *p.shape)
    if p.is_complex():
        return torch.complex(values, numbers(seed + 1000, *p.shape))
    if p.ndim < 2:
        return 0.1 * values + float((p == 1).all())  # scales near 1, shifts near 0
    fan_in = p.numel() / len(p)
    values /= fan_in**0.5
    if is_trained:
        first = numbers(seed + 2000, len(p), *[1] * (p.ndim - 1))
        values += first * numbers(seed + 3000, 1, *p.shape[1:]) / fan_in**0.5
    return values


def loss_of(name: str, model: nn.Module, step: int) -> Tensor:
    """Cross entropy of random labels."""
    inputs = NETWORKS[name].inputs(100 + step)
    if inputs.is_floating_point():
        inputs = inputs.to(next(model.parameters()).dtype)
    logits = model(inputs)
    logits = logits.reshape(-1, logits.shape[-1])
    labels = integers(200 + step, logits.shape[-1], len(logits))
    return cross_entropy(logits, labels)
