"""Networks with attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Hand-written causal attention, with an assertion on the length."""

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
        parts = (
            self.qkv(x).split(c, dim=2)
            if self.fused
            else (self.q(x), self.k(x), self.v(x))
        )
        q, k, v = (
            p.view(b, t, self.heads, c // self.heads).transpose(1, 2) for p in parts
        )
        scores = q @ k.transpose(-2, -1) / (c // self.heads) ** 0.5
        mask = torch.tril(torch.ones(t, t, device=x.device)) == 0
        weights = F.softmax(scores.masked_fill(mask, float("-inf")), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).contiguous().view(b, t, c))


class GPT(nn.Module):
    """In the style of nanoGPT, the output layer tied to the embedding."""

    def __init__(
        self,
        tokens: int = 11,
        width: int = 12,
        heads: int = 3,
        length: int = 8,
        layers: int = 2,
    ):
        super().__init__()
        self.length = length
        self.wte = nn.Embedding(tokens, width)
        self.wpe = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(width),
                    "attn": Attention(width, heads, length),
                    "ln_2": nn.LayerNorm(width),
                    "mlp": nn.Sequential(
                        nn.Linear(width, 4 * width),
                        nn.GELU(),
                        nn.Linear(4 * width, width),
                    ),
                }
            )
            for _ in range(layers)
        )
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, index: Tensor) -> Tensor:
        assert index.shape[1] <= self.length
        x = self.wte(index) + self.wpe(
            torch.arange(index.shape[1], device=index.device)
        )
        for block in self.blocks:
            x = x + block["attn"](block["ln_1"](x))
            x = x + block["mlp"](block["ln_2"](x))
        return self.head(self.ln_f(x))


class Tokens(nn.Module):
    """A small vision transformer: patches, class token, positional parameter, layer
    scale, pre-norm block."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, 5, width))
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.scale = nn.Parameter(torch.randn(width))
        self.rms = nn.RMSNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        h = self.norm(x)
        x = x + self.scale * self.attn(h, h, h, need_weights=False)[0]
        return self.head(self.rms(x)[:, 0])


class HeadsInEinsum(nn.Module):
    """Attention whose projections have an axis for heads, a learned query,
    an adapter from the left, a GLU."""

    def __init__(self, width: int = 6, heads: int = 2):
        super().__init__()
        self.q, self.k, self.v = (
            nn.Parameter(torch.randn(heads, width, 3)) for _ in range(3)
        )
        self.out = nn.Parameter(torch.randn(heads, 3, width))
        self.left = nn.Parameter(torch.randn(4, width))
        self.glu = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("btc,hcd->bhtd", x, w) for w in (self.q, self.k, self.v)
        )
        weights = torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1)
        x = x + torch.einsum(
            "bhtd,hdc->btc", torch.einsum("bhts,bhsd->bhtd", weights, v), self.out
        )
        return F.glu(
            self.glu(torch.matmul(self.left, x.transpose(1, 2)).transpose(1, 2))
        )


class HeadNorms(nn.Module):
    """Attention with norms of queries and keys, whose scales and shift are shared by
    the heads."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.LayerNorm(width // heads)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1))
            for layer in (self.q, self.k, self.v)
        )
        # before and behind the transposition
        q = self.q_norm(q).transpose(1, 2)
        k = self.k_norm(k.transpose(1, 2))
        x = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return self.proj(x.transpose(1, 2).flatten(2))


class RelativeBias(nn.Module):
    """T5: a table has a bias for every distance and head,
    added to the scores (Raffel et al. 2020)."""

    def __init__(self, width: int = 8, heads: int = 2):
        super().__init__()
        self.heads, self.table = heads, nn.Embedding(6, heads)
        self.stem = nn.Linear(3, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            self.qkv(self.stem(x))
            .reshape(b, t, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        steps = torch.arange(t)
        distance = (steps[:, None] - steps).clamp(-2, 3) + 2
        scores = q @ k.transpose(-1, -2) + self.table(distance).permute(2, 0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))


class Windows(nn.Module):
    """Swin: attention in shifted windows with a table of position biases,
    then merged patches (Liu et al. 2021)."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.norm = nn.LayerNorm(4)
        self.qkv = nn.Linear(4, 12)
        self.proj = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.merged = nn.LayerNorm(16)
        self.reduce = nn.Linear(16, 6, bias=False)
        self.head = nn.Linear(6, 2)
        place = torch.stack(
            torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
        ).flatten(1)
        step = (place[:, :, None] - place[:, None]).permute(1, 2, 0) + 1
        self.register_buffer("index", step[..., 0] * 3 + step[..., 1])

    def attend(self, x: Tensor) -> Tensor:
        """Of windows of four tokens: (windows, 4, 4)."""
        q, k, v = self.qkv(x).reshape(-1, 4, 3, 2, 2).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) + self.table[self.index.view(-1)].view(
            4, 4, 2
        ).permute(2, 0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(b, h // 2, 2, w // 2, 2, c)
        y = self.attend(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)).view(
            b, h // 2, w // 2, 2, 2, c
        )
        x = x + torch.roll(
            y.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c), (1, 1), (1, 2)
        )
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.reduce(self.merged(x)).mean((1, 2)))


class Perceiver(nn.Module):
    """Learned latents that attend to the inputs and then to each other (Jaegle et al.
    2021)."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, 6))
        self.stem = nn.Linear(3, 6)
        self.cross = nn.MultiheadAttention(6, 2, batch_first=True)
        self.own = nn.TransformerEncoderLayer(6, 2, 5, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, latents = (self.stem(x), self.latents.unsqueeze(0).expand(len(x), -1, -1))
        latents = latents + self.cross(latents, x, x, need_weights=False)[0]
        return self.head(self.own(latents).mean(1))


class Translation(nn.Module):
    """Encoder and causal decoder of `nn.Transformer`; two inputs."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.embedding = nn.Embedding(5, width)
        self.transformer = nn.Transformer(
            width, 2, 1, 1, 5, dropout=0.0, batch_first=True
        )
        self.head = nn.Linear(width, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(
            target.shape[1], dtype=torch.float64
        )
        return self.head(
            self.transformer(
                self.embedding(source), self.embedding(target), tgt_mask=mask
            )
        )


class Seeds(nn.Module):
    """Learned queries that attend to a set,
    whose features have a scale at every place (Lee et al. 2019)."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(5, 3))
        self.seeds = nn.Parameter(torch.randn(1, 2, 4))
        self.q = nn.Linear(4, 6)
        self.k = nn.Linear(3, 6)
        self.v = nn.Linear(3, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.places
        q = self.q(self.seeds.repeat(len(x), 1, 1))
        return self.out(F.scaled_dot_product_attention(q, self.k(x), self.v(x)))


class Prefixed(nn.Module):
    """Attention with learned keys and values in front of those of the tokens,
    and an attention without a softmax."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(3, 4)
        self.k = nn.Linear(3, 4)
        self.v = nn.Linear(3, 4)
        self.out = nn.Linear(4, 2)
        self.keys = nn.Parameter(torch.randn(1, 2, 4))
        self.values = nn.Parameter(torch.randn(1, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        features = torch.einsum(
            "btd,bde->bte", F.elu(q), torch.einsum("btd,bte->bde", F.elu(k), v)
        )
        k, v = (
            torch.cat([prefix.expand(len(x), -1, -1), y], dim=1)
            for prefix, y in ((self.keys, k), (self.values, v))
        )
        q, k, v = (y.unflatten(-1, (2, 2)).transpose(1, 2) for y in (q, k, v))
        return self.out(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            * features
        )
