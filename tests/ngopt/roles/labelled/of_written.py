"""Small language models written as in code for pretraining, in plain torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS = torch.arange(16).expand(2, 16)
DIM = 48


def rotated(x: Tensor) -> Tensor:
    """x, of (batch, tokens, heads, size), with pairs of neighbours rotated by their
    position, as complex numbers."""
    tokens, size = x.shape[1], x.shape[3]
    angles = torch.outer(torch.arange(tokens), 100 ** -torch.linspace(0, 1, size // 2))
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(3)


def rotated_halves(x: Tensor) -> Tensor:
    """As `rotated`, with pairs of the first and second half of a head, without complex
    numbers."""
    tokens, size = x.shape[1], x.shape[3]
    angles = torch.outer(torch.arange(tokens), 100 ** -torch.linspace(0, 1, size // 2))
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class Decoder(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.tok_embeddings = nn.Embedding(100, DIM)
        self.layers = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(DIM)
        self.output = nn.Linear(DIM, 100, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.output(self.norm(h))


class Block(nn.Module):
    def __init__(self, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.attention_norm = nn.RMSNorm(DIM)
        self.attention = attention
        self.ffn_norm = nn.RMSNorm(DIM)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class Attention(nn.Module):
    """Of torchtitan's Llama: grouped queries."""

    def __init__(self, heads: int = 12, groups: int = 3, size: int = 6):
        super().__init__()
        self.size = size
        self.wq = nn.Linear(DIM, heads * size, bias=False)
        self.wk = nn.Linear(DIM, groups * size, bias=False)
        self.wv = nn.Linear(DIM, groups * size, bias=False)
        self.wo = nn.Linear(heads * size, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = rotated(self.wq(x).view(batch, tokens, -1, self.size)).transpose(1, 2)
        k = rotated(self.wk(x).view(batch, tokens, -1, self.size)).transpose(1, 2)
        v = self.wv(x).view(batch, tokens, -1, self.size).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(batch, tokens, -1))


class HalvesFeedForward(nn.Module):
    """The first half of the rows of w13 is w1, the second w3."""

    def __init__(self, hidden: int):
        super().__init__()
        self.w13 = nn.Linear(DIM, 2 * hidden, bias=False)
        self.w2 = nn.Linear(hidden, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)


class InterleavedFeedForward(HalvesFeedForward):
    """Of torchtitan: rows of w1 and of w3 take turns in w13."""

    def forward(self, x: Tensor) -> Tensor:
        both = self.w13(x)
        gate, up = both.view(*both.shape[:-1], -1, 2).unbind(-1)
        return self.w2(F.silu(gate) * up)


def llama_w13() -> tuple[nn.Module, Any]:
    blocks = [Block(Attention(), HalvesFeedForward(40)) for _ in range(2)]
    return Decoder(blocks), TOKENS


def llama_w13_interleaved() -> tuple[nn.Module, Any]:
    blocks = [Block(Attention(), InterleavedFeedForward(40)) for _ in range(2)]
    return Decoder(blocks), TOKENS


class GatedAttention(nn.Module):
    """Of Megatron with attention_output_gate: rows of each group are those of its
    queries, of their gates, of its key and of its value."""

    def __init__(self, heads: int = 12, groups: int = 3, size: int = 6):
        super().__init__()
        self.groups, self.size = groups, size
        self.per_group = heads // groups * size
        rows = groups * (2 * self.per_group + 2 * size)
        self.linear_qkv = nn.Linear(DIM, rows, bias=False)
        self.linear_proj = nn.Linear(heads * size, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        mixed = self.linear_qkv(x).view(batch, tokens, self.groups, -1)
        sizes = [self.per_group, self.per_group, self.size, self.size]
        q, gate, k, v = torch.split(mixed, sizes, dim=3)
        q = rotated_halves(q.reshape(batch, tokens, -1, self.size))
        k = rotated_halves(k).repeat_interleave(q.shape[2] // self.groups, dim=2)
        v = v.repeat_interleave(q.shape[2] // self.groups, dim=2)
        scores = torch.einsum("bshd,bthd->bhst", q, k) * self.size**-0.5
        mask = torch.full((tokens, tokens), float("-inf")).triu(1)
        y = torch.einsum("bhst,bthd->bshd", (scores + mask).softmax(-1), v)
        y = y * torch.sigmoid(gate.reshape(y.shape))
        return self.linear_proj(y.flatten(2))


def q_gate_kv() -> tuple[nn.Module, Any]:
    blocks = [Block(GatedAttention(), HalvesFeedForward(40)) for _ in range(2)]
    return Decoder(blocks), TOKENS


class LatentAttention(nn.Module):
    """Of DeepSeek's code for inference, in its naive mode, without caches."""

    def __init__(self, heads: int = 5, rank: int = 12):
        super().__init__()
        self.heads, self.rank = heads, rank
        self.nope, self.rope, self.v = 10, 6, 14  # sizes of a head
        self.wq_a = nn.Linear(DIM, 20, bias=False)
        self.q_norm = nn.RMSNorm(20)
        self.wq_b = nn.Linear(20, heads * (self.nope + self.rope), bias=False)
        self.wkv_a = nn.Linear(DIM, rank + self.rope, bias=False)
        self.kv_norm = nn.RMSNorm(rank)
        self.wkv_b = nn.Linear(rank, heads * (self.nope + self.v), bias=False)
        self.wo = nn.Linear(heads * self.v, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q = self.wq_b(self.q_norm(self.wq_a(x))).view(batch, tokens, self.heads, -1)
        q_nope, q_pe = torch.split(q, [self.nope, self.rope], dim=-1)
        kv, k_pe = torch.split(self.wkv_a(x), [self.rank, self.rope], dim=-1)
        k_pe = rotated(k_pe.unsqueeze(2))
        q = torch.cat([q_nope, rotated(q_pe)], dim=-1)
        kv = self.wkv_b(self.kv_norm(kv)).view(batch, tokens, self.heads, -1)
        k_nope, v = torch.split(kv, [self.nope, self.v], dim=-1)
        k = torch.cat([k_nope, k_pe.expand(-1, -1, self.heads, -1)], dim=-1)
        scores = torch.einsum("bshd,bthd->bsht", q, k) * q.shape[-1] ** -0.5
        mask = torch.full((tokens, tokens), float("-inf")).triu(1)
        weights = (scores + mask.unsqueeze(1)).softmax(-1)
        return self.wo(torch.einsum("bsht,bthd->bshd", weights, v).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(DIM, hidden, bias=False)
        self.w2 = nn.Linear(hidden, DIM, bias=False)
        self.w3 = nn.Linear(DIM, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def mla_wkv_b() -> tuple[nn.Module, Any]:
    blocks = [Block(LatentAttention(), FeedForward(40)) for _ in range(2)]
    return Decoder(blocks), TOKENS


class GroupedExperts(nn.Module):
    """Of torchtitan: its loop over experts, whose tokens follow one another in x."""

    def __init__(self, experts: int, hidden: int):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(experts, hidden, DIM) / 8)
        self.w2 = nn.Parameter(torch.randn(experts, DIM, hidden) / 8)
        self.w3 = nn.Parameter(torch.randn(experts, hidden, DIM) / 8)

    def forward(self, x: Tensor, tokens_per_expert: Tensor) -> Tensor:
        outputs = []
        for expert, routed in enumerate(torch.split(x, tokens_per_expert.tolist())):
            h = F.silu(torch.matmul(routed, self.w1[expert].transpose(-2, -1)))
            h = h * torch.matmul(routed, self.w3[expert].transpose(-2, -1))
            outputs.append(torch.matmul(h, self.w2[expert].transpose(-2, -1)))
        return torch.cat(outputs)


class MoE(nn.Module):
    """Of torchtitan: top-k scores multiply the inputs of the experts."""

    def __init__(self, experts: int = 5, top_k: int = 2):
        super().__init__()
        self.count, self.top_k = experts, top_k
        self.gate = nn.Linear(DIM, experts, bias=False)
        self.experts = GroupedExperts(experts, 20)
        self.shared_experts = FeedForward(24)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, DIM)
        scores = torch.sigmoid(self.gate(flat))
        _, chosen = torch.topk(scores, self.top_k, dim=-1, sorted=False)
        top_scores = scores.gather(1, chosen).view(-1)
        counts = torch.bincount(chosen.view(-1), minlength=self.count)
        order = torch.argsort(chosen.view(-1), stable=True)
        index = (order // self.top_k).unsqueeze(1).expand(-1, DIM)
        routed = torch.gather(flat, 0, index) * top_scores[order].unsqueeze(1)
        out = self.shared_experts(flat)
        out = out.scatter_add(0, index, self.experts(routed, counts))
        return out.view_as(x)


def torchtitan_experts() -> tuple[nn.Module, Any]:
    return Decoder([Block(Attention(), MoE()) for _ in range(2)]), TOKENS
