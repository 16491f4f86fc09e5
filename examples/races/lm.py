"""A GPT with 34 M parameters on the Python source files of this machine, for a GPU.

    ngopt race examples.races.lm --steps 1000 --device cuda

8 blocks of width 512, 64 sequences of 512 tokens per step, bfloat16 autocast on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu.corpus import Corpus, load_corpus
from benchmarks.gpu.session import Session
from benchmarks.shapes import Gpt, loss_of

WIDTH, HEADS, BLOCKS = 512, 8, 8
LENGTH, BATCH = 512, 64
TOKENS = 31_000_000
BATCHES, VALIDATION_BATCHES = 10_000, 8
Batch = tuple[Tensor, Tensor]


@cache
def corpus() -> Corpus:
    """Encodes the text in the first call; cached in runs/race."""
    session = Session("cpu", False, Path("runs/race"), deadline=inf)
    return load_corpus(session, TOKENS)


def model() -> nn.Module:
    return Gpt(corpus().vocabulary, LENGTH, WIDTH, HEADS, BLOCKS)


def batches() -> Iterator[Batch]:
    tokens = torch.from_numpy(corpus().train.astype("int32"))
    generator = torch.Generator().manual_seed(0)
    high = len(tokens) - LENGTH
    for _ in range(BATCHES):
        yield windows(tokens, torch.randint(high, (BATCH,), generator=generator))


def validation_batches() -> Iterator[Batch]:
    tokens = torch.from_numpy(corpus().validation.astype("int32"))
    last = len(tokens) - LENGTH - 1
    starts = torch.linspace(0, last, VALIDATION_BATCHES * BATCH).long()
    for batch in starts.split(BATCH):
        yield windows(tokens, batch)


def windows(tokens: Tensor, starts: Tensor) -> Batch:
    """Tokens and the token after each, two tensors (batch, length)."""
    found = tokens[starts[:, None] + torch.arange(LENGTH + 1)].long()
    return found[:, :-1], found[:, 1:]


def loss(network: nn.Module, batch: Batch) -> Tensor:
    return loss_of(network, *batch)
