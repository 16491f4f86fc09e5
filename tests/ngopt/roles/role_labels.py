"""Networks of torchvision and tiny transformers, and roles of their parameters by hand.

Labels are in `role_labels.csv`: roles of parameters whose names match a regular
expression.
"""

import csv
import importlib
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shapes import causal_attention, torchvision_example

VOCABULARY, WIDTH, LENGTH = 50, 24, 7


def tokens(length: int = LENGTH) -> Tensor:
    """Two sequences of tokens, (2, length)."""
    return (torch.arange(2 * length) * 7 % VOCABULARY).reshape(2, length)


GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 16,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
}
LLAMA = BERT | {"num_attention_heads": 4, "num_key_value_heads": 2}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}


def transformer(
    config: str, model: str, settings: dict[str, Any], labels: Tensor | None = None
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of the `transformers` package by the names of its classes, and its
    arguments as trainers pass them."""
    package = importlib.import_module("transformers")
    made = getattr(package, config).from_dict(settings)
    inputs = {
        "input_ids": tokens(),
        "attention_mask": torch.ones(2, LENGTH, dtype=torch.long),
        "labels": tokens() if labels is None else labels,
    }
    return getattr(package, model)(made), inputs


class Foo(nn.Module):
    """A LayerNorm without epsilon."""

    def __init__(self, width: int):
        super().__init__()
        self.s = nn.Parameter(torch.ones(width))
        self.t = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.s * centred / centred.pow(2).mean(-1, keepdim=True).sqrt() + self.t


class Bar(nn.Module):
    """A transformer block: `a`, `b`, `c` are attention, `d`, `e`, `f`, `g` an MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.a = Foo(width)
        self.b = nn.Linear(width, 3 * width)
        self.c = nn.Linear(width, width)
        self.d = Foo(width)
        self.e = nn.Linear(width, 2 * width)
        self.f = nn.Linear(width, width, bias=False)
        self.g = nn.Parameter(torch.ones(width))  # a layer scale

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.c(causal_attention(self.b(self.a(x)), self.heads))
        left, right = self.e(self.d(x)).chunk(2, -1)
        return x + self.g * self.f(F.silu(left) * right)


class Baz(nn.Module):
    """A GPT: `a` are the tied token embeddings, `b` those of positions."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(VOCABULARY, WIDTH))
        self.b = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.c = nn.ModuleList(Bar(WIDTH, 3) for _ in range(2))
        self.d = Foo(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.embedding(x, self.a) + self.b
        for block in self.c:
            x = block(x)
        return self.d(x) @ self.a.T


UNTIED = GPT2 | {"tie_word_embeddings": False}
PAIR = torch.tensor([0, 1])  # labels of a classifier of sequences
TRANSFORMERS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "gpt2": partial(transformer, "GPT2Config", "GPT2LMHeadModel", GPT2),
    "gpt2, untied": partial(transformer, "GPT2Config", "GPT2LMHeadModel", UNTIED),
    # grouped queries, rotary positions and an untied output layer
    "llama": partial(transformer, "LlamaConfig", "LlamaForCausalLM", LLAMA),
    "bert": partial(
        transformer, "BertConfig", "BertForSequenceClassification", BERT, PAIR
    ),
    # an encoder and a decoder with tied embeddings and output
    "t5": partial(transformer, "T5Config", "T5ForConditionalGeneration", T5, tokens(5)),
    "oddly named": lambda: (Baz(), tokens()),
}


def network(name: str) -> tuple[nn.Module, Any]:
    """A network of the table and its inputs."""
    if name in TRANSFORMERS:
        return TRANSFORMERS[name]()
    return torchvision_example(name)


@cache
def patterns(network: str) -> list[tuple[str, str]]:
    """Regular expressions of names, and roles by hand."""
    pairs = []
    with Path(__file__).with_suffix(".csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if network in row["networks"].split("|"):
                pairs.append((row["pattern"], row["role"]))
    return pairs


def label(network: str, parameter: str) -> str:
    """The role of a parameter by hand; the first pattern that matches applies."""
    for pattern, role in patterns(network):
        if re.fullmatch(pattern, parameter):
            return role
    raise KeyError(f"labels: expected a pattern for '{parameter}' of {network}")
