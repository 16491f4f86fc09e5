"""A small GPT on the bytes of Python's standard library.

ngopt race examples.races.character_gpt
"""

import argparse
from collections.abc import Iterator

from torch import Tensor, nn

from examples.fsdp2_gpt import GPT, draw, load_text, loss_of

SIZES = argparse.Namespace(width=128, heads=4, blocks=4, context=64, recompute=False)
BATCH, BATCHES = 16, 10_000
TRAIN, HELD_OUT = load_text()


def model() -> nn.Module:
    network = GPT(SIZES)
    for p in network.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.02)
    return network


def batches() -> Iterator[Tensor]:
    for seed in range(BATCHES):
        yield draw(TRAIN, BATCH, seed, SIZES)


def validation_batches() -> Iterator[Tensor]:
    for seed in range(8):
        yield draw(HELD_OUT, BATCH, seed, SIZES)


def loss(network: nn.Module, batch: Tensor) -> Tensor:
    return loss_of(network, batch)
