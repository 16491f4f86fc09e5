"""A GPT with 34 M parameters on the Python source files of this machine, for a GPU.

    ngopt race examples.races.lm --steps 1000 --device cuda

8 blocks of width 512, 64 sequences of 512 tokens per step, bfloat16 autocast on GPUs.
"""

from collections.abc import Iterator
from functools import cache
from math import inf
from pathlib import Path

from torch import Tensor, nn

from benchmarks.gpu.lm import FULL, Text, load_corpus
from benchmarks.gpu.session import Session
from benchmarks.shapes import loss_of

BATCHES = 10_000
Batch = tuple[Tensor, Tensor]


@cache
def data() -> Text:
    """Encodes the text in the first call; cached in runs/race."""
    session = Session("cpu", False, Path("runs/race"), deadline=inf)
    return Text(session, FULL, load_corpus(session, FULL.tokens))


def model() -> nn.Module:
    return data().model()


def batches() -> Iterator[Batch]:
    yield from map(data().batch, data().order(BATCHES))


def validation_batches() -> list[Batch]:
    return data().validation_batches()


def loss(network: nn.Module, batch: Batch) -> Tensor:
    return loss_of(network, *batch)
