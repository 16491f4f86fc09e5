"""Language models on the Python source files of the machine.

GPTs with 8 blocks on 64 x 512 tokens a step, 34 M parameters at width 512, or with
GPT-2's shape on 32 x 1,024 tokens. "headers" is another text for the same network: the
C++ headers of torch, encoded by the tokenizer of the source files.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.corpus import Corpus
from benchmarks.gpu.session import Session
from benchmarks.shapes import Gpt


class Size(NamedTuple):
    """Sizes of an experiment.

    width, heads, depth: of the GPT. length: tokens per sequence. batch: sequences per
    step. tokens: for training. windows: sequences for validation.
    """

    width: int
    heads: int
    depth: int
    length: int
    batch: int
    vocabulary: int
    tokens: int
    windows: int


FULL = Size(512, 8, 8, 512, 64, 8192, 31_000_000, 512)
TINY = Size(16, 2, 1, 16, 4, 300, 20_000, 8)
GPT_2 = Size(768, 12, 12, 1024, 32, 50304, 31_000_000, 256)


class Text:
    """A corpus on the device, its batches and a network for it."""

    def __init__(self, session: Session, size: Size, corpus: Corpus):
        self.size, self.vocabulary = size, corpus.vocabulary
        self.about = {
            "tokenizer": corpus.tokenizer,
            "train_tokens": len(corpus.train),
            "validation_tokens": len(corpus.validation),
        }
        self.device = torch.device(session.device)
        self._train = self._on_device(corpus.train)
        self._held_out = self._on_device(corpus.validation)
        last = len(self._held_out) - size.length - 1
        starts = torch.linspace(0, last, size.windows).long()
        self._held_out_starts = starts.to(self.device)
        self._offsets = torch.arange(size.length + 1, device=self.device)

    def _on_device(self, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int32)).to(self.device)

    def model(self) -> nn.Module:
        size = self.size
        return Gpt(self.vocabulary, size.length, size.width, size.heads, size.depth)

    def order(self, steps: int, seed: int = 0) -> Tensor:
        """Starts of the windows of each batch: (steps, batch)."""
        generator = torch.Generator().manual_seed(seed)
        high, shape = len(self._train) - self.size.length, (steps, self.size.batch)
        return torch.randint(high, shape, generator=generator).to(self.device)

    def batch(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and the token after each, two tensors (batch, length)."""
        return self._windows(self._train, starts)

    def validation_batches(self) -> list[tuple[Tensor, Tensor]]:
        batches = self._held_out_starts.split(self.size.batch)
        return [self._windows(self._held_out, starts) for starts in batches]

    def _windows(self, tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        windows = tokens[starts[:, None] + self._offsets].long()
        return windows[:, :-1], windows[:, 1:]
