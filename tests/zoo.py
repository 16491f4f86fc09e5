"""Networks with every kind of layer that the graph knows, each small, with an example input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Hand-written attention of linear layers, causal, with an assertion on the length."""

    def __init__(self, width: int, heads: int, length: int = 8, fused: bool = True):
        super().__init__()
        self.heads, self.length, self.fused = heads, length, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        assert t <= self.length, f"cannot take {t} tokens"
        parts = self.qkv(x).split(c, dim=2) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (p.view(b, t, self.heads, c // self.heads).transpose(1, 2) for p in parts)
        scores = q @ k.transpose(-2, -1) / (c // self.heads) ** 0.5
        mask = torch.tril(torch.ones(t, t, device=x.device)) == 0
        weights = F.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).contiguous().view(b, t, c))


class GPT(nn.Module):
    """In the style of nanoGPT, the output layer tied to the embedding."""

    def __init__(self, tokens: int = 11, width: int = 12, heads: int = 3, length: int = 8, layers: int = 2):
        super().__init__()
        self.length = length
        self.wte, self.wpe = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(width),
                    "attn": Attention(width, heads, length),
                    "ln_2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
                }
            )
            for _ in range(layers)
        )
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, index: Tensor) -> Tensor:
        assert index.shape[1] <= self.length
        x = self.wte(index) + self.wpe(torch.arange(index.shape[1], device=index.device))
        for block in self.blocks:
            x = x + block["attn"](block["ln_1"](x))
            x = x + block["mlp"](block["ln_2"](x))
        return self.head(self.ln_f(x))


class Residual(nn.Module):
    """Two convolutional blocks, one with a skip as it is, one with a projected skip; squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.down, self.bn3 = nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + self.bn3(self.down(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc((x * gate).mean((2, 3)))


class Grouped(nn.Module):
    """Depthwise and grouped convolutions, GroupNorm, channel shuffle, concatenation, PReLU, flattening."""

    def __init__(self):
        super().__init__()
        self.depthwise, self.grouped = nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.Conv2d(4, 6, 3, groups=2, padding=1)
        self.norm, self.act = nn.GroupNorm(2, 6), nn.PReLU(6)
        self.point = nn.Conv2d(10, 4, 1)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2, groups=1)
        self.fc = nn.Linear(3 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.depthwise(x))
        y = self.act(self.norm(self.grouped(x)))
        x = self.instance(self.point(F.channel_shuffle(torch.cat([x, y], 1), 2)))
        return self.fc(F.max_pool2d(self.up(F.gelu(x)), 2).flatten(1))


class Tokens(nn.Module):
    """A small vision transformer: patches, class token, positional parameter, layer scale, pre-norm block."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.norm, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.scale = nn.Parameter(torch.randn(width))
        self.rms, self.head = nn.RMSNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        h = self.norm(x)
        x = x + self.scale * self.attn(h, h, h, need_weights=False)[0]
        return self.head(self.rms(x)[:, 0])


class DeepSets(nn.Module):
    """Equivariant linear layers on sets: every element on its own, and their mean (Zaheer et al. 2017)."""

    def __init__(self):
        super().__init__()
        self.own, self.mean = nn.Linear(3, 5), nn.Linear(3, 5, bias=False)
        self.own2, self.mean2 = nn.Linear(5, 4), nn.Linear(5, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.own(x) + self.mean(x.mean(1, keepdim=True)))
        return self.own2(x) + self.mean2(x.mean(1, keepdim=True))


class Triplane(nn.Module):
    """Three feature planes that are sampled at projected coordinates, then an MLP (Chan et al. 2022)."""

    def __init__(self):
        super().__init__()
        self.planes = nn.Parameter(torch.randn(3, 4, 5, 5))
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        coordinates = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]]).unsqueeze(1)
        features = F.grid_sample(self.planes, coordinates, align_corners=True)  # (3, 4, 1, n)
        return self.mlp(features.sum(0).squeeze(1).T)


class HeadsInEinsum(nn.Module):
    """Attention whose projections have an axis for heads, a learned query, an adapter from the left, a GLU."""

    def __init__(self, width: int = 6, heads: int = 2):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(heads, width, 3)) for _ in range(3))
        self.out, self.left = nn.Parameter(torch.randn(heads, 3, width)), nn.Parameter(torch.randn(4, width))
        self.glu = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,hcd->bhtd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1)
        x = x + torch.einsum("bhtd,hdc->btc", torch.einsum("bhts,bhsd->bhtd", weights, v), self.out)
        return F.glu(self.glu(torch.matmul(self.left, x.transpose(1, 2)).transpose(1, 2)))


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], **options):
        super().__init__()
        self.rnn = cell(3, 4, batch_first=True, **options)
        width = (options.get("proj_size") or 4) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class States(nn.Module):
    """A stack of recurrent layers whose states begin as they are learned or made of the input, read at the end."""

    def __init__(self):
        super().__init__()
        self.rnn, self.cells = nn.LSTM(3, 4, num_layers=2, bidirectional=True), nn.Linear(3, 16)
        self.begin, self.head = nn.Parameter(torch.randn(4, 1, 4)), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        begin = self.begin.expand(-1, len(x), -1), self.cells(x[:, 0]).view(len(x), 4, 4).transpose(0, 1)
        hidden, cells = self.rnn(x.transpose(0, 1), begin)[1]
        return self.head(torch.cat([hidden[2], hidden[3], cells[2], cells[3]], -1))


class EncoderDecoder(nn.Module):
    """Two recurrent layers, the second of which begins with the last state of the first; without a batch."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.GRU(3, 4, bias=False), nn.GRU(3, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.encoder(x)[1]
        return self.head(torch.cat([self.decoder(x.flip(0), state)[0], state.expand(len(x), -1)], -1))


class Cells(nn.Module):
    """Cells that take steps: one reads the input, its state behind a norm, one writes and sees what it wrote."""

    def __init__(self):
        super().__init__()
        self.reader, self.norm = nn.LSTMCell(3, 4), nn.LayerNorm(4)
        self.begin, self.writer, self.out = nn.Linear(4, 5), nn.GRUCell(2, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cells = torch.zeros(len(x), 4, dtype=x.dtype)
        for t in range(x.shape[1]):
            hidden, cells = self.reader(x[:, t], (self.norm(hidden), cells))
        state, written = self.begin(hidden), [hidden.new_zeros(len(x), 2)]
        for _ in range(3):
            state = self.writer(written[-1], state)
            written.append(self.out(state))
        return torch.stack(written, 1)


class Standardised(nn.Module):
    """Statistics of neurons, as in a norm that is written by hand: norms, moments and extremes."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.out = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.wide(x / x.norm(p=1, dim=-1, keepdim=True))
        deviation, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
        bound = torch.linalg.norm(x, dim=2).logsumexp(1)[:, None, None]
        return self.out(torch.cat([x / deviation * bound, mean * x.amax(2, keepdim=True)], -1))


class Regions(nn.Module):
    """Parts that run in another mode: without gradients, in another precision, with a checkpoint."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.exact, self.last = (nn.Linear(n, m) for n, m in ((3, 4), (4, 5), (5, 6), (6, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.first, x, use_reentrant=False)
        with torch.autocast("cpu", enabled=False):
            with torch.no_grad():
                frozen = torch.relu(self.frozen(x))
            x = torch.tanh(self.exact(frozen))
        return self.last(x) * frozen.mean(-1, keepdim=True)


class Gated(nn.Module):
    """SwiGLU, a bilinear layer, a weight used twice, raw weights handed to functions, a learned temperature."""

    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.bilinear = nn.Bilinear(4, 4, 3)
        self.raw, self.temperature = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        x = torch.tanh(x @ self.raw)
        x = torch.tanh(F.linear(x, self.raw))
        return self.bilinear(x, x.sin()) * self.temperature


class HeadNorms(nn.Module):
    """Attention with norms of queries and keys, whose scales and shift are shared by the heads."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.LayerNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k.transpose(1, 2))  # before and behind the transposition
        x = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return self.proj(x.transpose(1, 2).flatten(2))


class Shared(nn.Module):
    """Layers that two halves of the neurons share: a linear one, and a convolution with the halves in the batch."""

    def __init__(self):
        super().__init__()
        self.stem, self.linear, self.conv = nn.Linear(3, 6), nn.Linear(3, 4), nn.Conv1d(4, 2, 3, padding=1)
        self.hidden, self.out = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        x = torch.tanh(self.linear(torch.tanh(self.stem(x)).view(b, t, 2, 3)))
        x = self.conv(x.permute(0, 2, 3, 1).reshape(2 * b, 4, t)).view(b, 4, t)
        return self.out(torch.tanh(self.hidden(torch.tanh(x).transpose(1, 2))))


class Shuffled(nn.Module):
    """A pixel shuffle, behind which a channel is another neuron in every place, then norms and a convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.batch, self.group = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(F.pixel_shuffle(self.up(torch.tanh(self.stem(x))), 2))
        return self.out(torch.tanh(self.group(F.relu(x))))


class Overlapping(nn.Module):
    """Slices of one weight and of its bias, some of whose elements are in several of them, others in one."""

    def __init__(self):
        super().__init__()
        self.stem, self.out = nn.Linear(3, 6), nn.Linear(12, 2)
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        whole, narrow = F.linear(x, self.weight, self.bias), F.linear(x[..., :4], self.weight[:, :4])
        corner = F.linear(x[..., 3:], self.weight[3:, 3:], self.bias[3:])
        return self.out(torch.tanh(torch.cat([whole, narrow, corner], -1)))


class Dueling(nn.Module):
    """Channels less their mean, one layer less another, a sum with the neurons reversed, a dueling head."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 3, groups=4, padding=1)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6)
        self.advantage, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.tanh(self.depthwise(x - x.mean(1, keepdim=True))).mean(-1)
        x = torch.tanh(self.up(x) - self.down(x))
        x = torch.tanh(x + 2 * x.flip(-1))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


class Selective(nn.Module):
    """One step of a selective state space, whose states are pairs of a channel and a direction, then two shifts."""

    def __init__(self):
        super().__init__()
        self.step, self.write, self.read = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(4, 2)
        self.rate, self.table = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 3))
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        decay = torch.exp(-F.softplus(self.step(x))[..., None] * self.rate)
        x = ((decay * self.write(x)[..., None, :]).cumsum(1) * self.read(x)[..., None, :]).sum(-1)
        scale, shift = (self.table + x.mean(1, keepdim=True)).chunk(2, dim=1)
        return self.out(torch.tanh(x * scale + shift))


class Seeds(nn.Module):
    """Learned queries that attend to a set, whose features have a scale at every place (Lee et al. 2019)."""

    def __init__(self):
        super().__init__()
        self.places, self.seeds = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(1, 2, 4))
        self.q, self.k, self.v, self.out = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.places
        q = self.q(self.seeds.repeat(len(x), 1, 1))
        return self.out(F.scaled_dot_product_attention(q, self.k(x), self.v(x)))


class Prefixed(nn.Module):
    """Attention with learned keys and values in front of those of the tokens, and an attention without a softmax."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
        self.keys, self.values = nn.Parameter(torch.randn(1, 2, 4)), nn.Parameter(torch.randn(1, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        features = torch.einsum("btd,bde->bte", F.elu(q), torch.einsum("btd,bte->bde", F.elu(k), v))
        k, v = (
            torch.cat([prefix.expand(len(x), -1, -1), y], dim=1) for prefix, y in ((self.keys, k), (self.values, v))
        )
        q, k, v = (y.unflatten(-1, (2, 2)).transpose(1, 2) for y in (q, k, v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) * features)


class Mixture(nn.Module):
    """Experts, all of them weighted by a gate, between two graph convolutions, whose adjacency is an input."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(5, 2)
        self.gate, self.experts = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x, adjacency = x[..., :3], x[..., 3:]
        x = torch.tanh(adjacency @ self.first(x))
        outputs = torch.einsum("btd,edf->btef", x, self.experts)
        x = torch.einsum("bte,btef->btf", self.gate(x).softmax(-1), torch.tanh(outputs))
        return self.last(adjacency @ x)


class Generator(nn.Module):
    """A learned constant map that a style scales, and a last layer whose weights and biases another layer makes."""

    def __init__(self):
        super().__init__()
        self.constant, self.code = nn.Parameter(torch.randn(1, 3, 2, 2)), nn.Parameter(torch.randn(2))
        self.style, self.conv, self.make = nn.Linear(5, 3), nn.Conv2d(3, 4, 2, padding=1), nn.Linear(2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.constant.expand(len(x), -1, -1, -1) * torch.tanh(self.style(x))[:, :, None, None]
        made = self.make(self.code)
        return F.linear(torch.tanh(self.conv(x)).mean((2, 3)), made[:8].view(2, 4), made[8:])


class Repeated(nn.Module):
    """Channels that come twice, all in turn in front of a convolution, one by one in front of a depthwise one."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv1d(2, 3, 3, padding=1), nn.Conv1d(6, 4, 3, padding=1)
        self.depthwise, self.out = nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.conv(torch.cat([x, x], 1)))
        return self.out(torch.tanh(self.depthwise(x.repeat_interleave(2, 1))))


def zoo() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name -> network in float64 and training mode, example input."""
    torch.manual_seed(0)
    images, tokens, features = torch.randn(2, 3, 8, 8), torch.randint(11, (2, 6)), torch.randn(2, 5, 12)
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    networks = {
        "gpt": (GPT(), tokens),
        "attention": (nn.Sequential(nn.Linear(12, 12), Attention(12, 3, fused=False)), features),
        "encoder layer": (layer, features),
        "transformer": (nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), features),
        "residual": (Residual(), torch.randn(2, 2, 8, 8)),
        "grouped": (Grouped(), torch.randn(2, 4, 8, 8)),
        "tokens": (Tokens(), images),
        "deep sets": (DeepSets(), torch.randn(2, 6, 3)),
        "triplane": (Triplane(), torch.rand(7, 3)),
        "lstm": (Recurrent(nn.LSTM, num_layers=2, bidirectional=True), torch.randn(2, 4, 3)),
        "projected lstm": (Recurrent(nn.LSTM, proj_size=2), torch.randn(2, 4, 3)),
        "gru": (Recurrent(nn.GRU), torch.randn(2, 4, 3)),
        "rnn": (Recurrent(nn.RNN, nonlinearity="relu"), torch.randn(2, 4, 3)),
        "states": (States(), torch.randn(2, 5, 3)),
        "encoder decoder": (EncoderDecoder(), torch.randn(5, 3)),
        "cells": (Cells(), torch.randn(2, 3, 3)),
        "standardised": (Standardised(), torch.randn(2, 4, 3)),
        "regions": (Regions(), torch.randn(2, 3)),
        "bags": (nn.Sequential(nn.EmbeddingBag(9, 5, padding_idx=0), nn.ReLU(), nn.Linear(5, 2)), tokens % 9),
        "gated": (Gated(), torch.randn(2, 4)),
        "head norms": (nn.Sequential(nn.Linear(3, 6), HeadNorms(6), nn.Linear(6, 2)), torch.randn(2, 5, 3)),
        "shared": (Shared(), torch.randn(2, 5, 3)),
        "shuffled": (Shuffled(), torch.randn(2, 1, 4, 4)),
        "overlapping": (Overlapping(), torch.randn(2, 3)),
        "dueling": (Dueling(), torch.randn(2, 2, 5)),
        "selective": (Selective(), torch.randn(2, 3, 4)),
        "seeds": (Seeds(), torch.randn(2, 5, 3)),
        "prefixed": (Prefixed(), torch.randn(2, 5, 3)),
        "mixture": (Mixture(), torch.randn(2, 3, 6)),
        "generator": (Generator(), torch.randn(2, 5)),
        "repeated": (Repeated(), torch.randn(2, 2, 5)),
        "einsum": (HeadsInEinsum(), torch.randn(2, 5, 6)),
        "group norm": (
            nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 3, 1)),
            torch.randn(2, 2, 5, 5),
        ),
        "conv1d": (nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU(), nn.Conv1d(3, 2, 3)), torch.randn(2, 2, 16)),
        "conv3d": (
            nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1)),
            torch.randn(2, 2, 4, 4, 4),
        ),
    }
    return {name: (model.double(), x.double() if x.is_floating_point() else x) for name, (model, x) in networks.items()}
