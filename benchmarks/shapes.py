"""Networks of the sizes that are trained on GPUs, and batches for them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_STD = 0.02  # of GPT-2's weights and tables
ROTARY_BASE = 10_000.0
IMAGE = 3, 224, 224


# --- GPT-2, with the parameter names of nanoGPT ---


class GptAttention(nn.Module):
    """Causal attention with one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(causal_attention(self.c_attn(x), self.heads))


def causal_attention(qkv: Tensor, heads: int) -> Tensor:
    """Attention with fused queries, keys and values (b, t, 3 * width)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).flatten(2)  # from (b, heads, t, width / heads)


class GptMlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GptBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = GptAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = GptMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """GPT-2 with an untied output layer and GPT-2's initialisation.

    vocabulary: number of tokens. length: maximum length of a sequence.
    """

    def __init__(
        self, vocabulary: int, length: int, width: int, heads: int, depth: int
    ):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(length, width)
        self.h = nn.ModuleList(GptBlock(width, heads) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = (2 * depth) ** -0.5 if "c_proj" in name else 1.0
                nn.init.normal_(p, std=scale * INITIAL_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (b, t) int64; returns logits (b, t, vocabulary)"""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


# --- Llama, with the parameter names of transformers ---


class LlamaAttention(nn.Module):
    """Causal attention with rotary position embeddings."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = rotary(self._by_head(self.q_proj(x)))  # (b, heads, t, width / heads)
        k = rotary(self._by_head(self.k_proj(x)))
        v = self._by_head(self.v_proj(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def rotary(x: Tensor) -> Tensor:
    """Rotates pairs of x (..., t, d) by angles proportional to the position."""
    length, size = x.shape[-2:]
    half = torch.arange(size // 2, device=x.device, dtype=torch.float32)
    position = torch.arange(length, device=x.device, dtype=torch.float32)
    angle = position[:, None] * ROTARY_BASE ** (-2 * half / size)  # (t, d / 2)
    cos = angle.cos().to(x.dtype)
    sin = angle.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    rotated = first * cos - second * sin, first * sin + second * cos
    return torch.cat(rotated, -1)


class LlamaMlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.self_attn = LlamaAttention(width, heads)
        self.mlp = LlamaMlp(width, hidden)
        self.input_layernorm = nn.RMSNorm(width)
        self.post_attention_layernorm = nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A Llama with an untied output layer. hidden: width of the MLPs."""

    def __init__(
        self, vocabulary: int, width: int, heads: int, hidden: int, depth: int
    ):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            LlamaLayer(width, heads, hidden) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (b, t) int64; returns logits (b, t, vocabulary)"""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


# --- Networks by name ---


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    with warnings.catch_warnings():
        # GoogLeNet warns that its default initialisation will change
        warnings.simplefilter("ignore")
        return torchvision.models.get_model(name, weights=None)


def torchvision_example(name: str) -> tuple[nn.Module, Tensor]:
    """A network and a batch of two images."""
    return torchvision_model(name), torch.randn(2, *IMAGE)


def transformers_gpt2() -> nn.Module:
    """GPT-2 small of `transformers`, with Conv1D layers and tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config())


def small_cnn() -> nn.Module:
    """A CNN with BatchNorm after a convolution without bias."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


GPT_34M = partial(Gpt, 8192, 512, 512, 8, 8)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2 124M": partial(Gpt, 50304, 1024, 768, 12, 12),
    "ResNet-50": partial(torchvision_model, "resnet50"),
    "ViT-B/16": partial(torchvision_model, "vit_b_16"),
    "Llama 16 x 1,024": partial(Llama, 32000, 1024, 16, 2816, 16),
    "GPT-2 of transformers": transformers_gpt2,
    "GPT 34M": GPT_34M,
}
"""Networks whose steps are counted (`benchmarks.launches`)."""


@dataclass(frozen=True)
class Workload:
    """A network and its training batches.

    inputs: shape of images (b, 3, height, width) or of tokens (b, t). classes: of the
    targets, one for each image or each token.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    classes: int

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Fixed random inputs and targets."""
        generator = torch.Generator().manual_seed(0)
        is_images = len(self.inputs) == 4
        shape = self.inputs[:1] if is_images else self.inputs
        targets = torch.randint(self.classes, shape, generator=generator)
        if is_images:
            inputs = torch.randn(self.inputs, generator=generator)
        else:
            inputs = torch.randint(self.classes, shape, generator=generator)
        return inputs.to(device), targets.to(device)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, mean over targets; with bfloat16 autocast on a GPU."""
    return loss_and_logits(model, inputs, targets)[0]


def loss_and_logits(
    model: nn.Module, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """As `loss_of`, and the logits (targets, classes)."""
    device = inputs.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits = model(inputs).view(prod(targets.shape), -1)
        return F.cross_entropy(logits, targets.flatten()), logits


WORKLOADS = {
    "GPT-2 124M": Workload(NETWORKS["GPT-2 124M"], (16, 1024), 50304),
    "ResNet-50": Workload(NETWORKS["ResNet-50"], (128, *IMAGE), 1000),
    "ResNet-50, 16 images": Workload(NETWORKS["ResNet-50"], (16, *IMAGE), 1000),
    "ViT-B/16": Workload(NETWORKS["ViT-B/16"], (128, *IMAGE), 1000),
    "Llama 0.5B": Workload(partial(Llama, 32000, 1024, 16, 2816, 32), (8, 1024), 32000),
    "GPT 34M": Workload(GPT_34M, (64, 512), 8192),
}
"""Workloads of `benchmarks.gpu`."""

TINY_WORKLOADS = {
    "tiny GPT": Workload(partial(Gpt, 64, 8, 16, 2, 2), (2, 8), 64),
    "tiny CNN": Workload(small_cnn, (4, 3, 8, 8), 10),
    "tiny Llama": Workload(partial(Llama, 64, 16, 2, 24, 2), (2, 8), 64),
}
"""Small workloads for tests on a CPU."""
