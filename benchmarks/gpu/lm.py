"""Language models on the Python source files of the machine.

GPTs with 8 blocks on 64 x 512 tokens a step, 34 M parameters at width 512, or with
GPT-2's shape on 32 x 1,024 tokens. "headers" is another text for the same network: the
C++ headers of torch, encoded by the tokenizer of the source files.
"""

import hashlib
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.session import Session
from benchmarks.shapes import Gpt
from harness.files import make_folder
from ngopt.pretrained.tensor_files import atomic_write

SOURCES, HEADERS = "*.py", "*.h"
VOCABULARY = 8192
BYTES = 256  # the vocabulary without `tokenizers`
SAMPLE = 8_000_000  # maximum characters for training the tokenizer
LONGEST = 1_000_000  # bytes of a file; longer files are skipped as data
HELD_OUT = 50  # files, of which one is for validation
BLOCK = 256  # files that are encoded together

Encode = Callable[[Sequence[str]], Iterable[np.ndarray]]
"""From texts to the tokens of each, (n,) uint16."""


class Corpus(NamedTuple):
    """train, validation: (n,) uint16 each. tokenizer: "BPE" or "bytes"."""

    train: np.ndarray
    validation: np.ndarray
    vocabulary: int
    tokenizer: str


def load_corpus(
    session: Session, count: int, vocabulary: int = VOCABULARY, files: str = SOURCES
) -> Corpus:
    """At most `count` training tokens of files, cached in the session's folder."""
    name = "BPE" if find_spec("tokenizers") else "bytes"
    size = vocabulary if name == "BPE" else BYTES
    folder = session.folder / "tokens"
    make_folder(folder)
    path = folder / f"{name}-{size}-{count}{Path(files).suffix}.npz"
    if not path.exists():
        encode = _bpe(folder, size, 4 * count) if name == "BPE" else _bytes
        train, validation = _tokens(count, encode, files)
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(file, train=train, validation=validation)
    with np.load(path) as tokens:
        return Corpus(tokens["train"], tokens["validation"], size, name)


def _texts(files: str) -> Iterator[str]:
    """The files of this Python's library and packages, in a fixed random order."""
    hashes: dict[Path, str] = {}
    for key in ("stdlib", "purelib"):
        folder = Path(sysconfig.get_paths()[key]).resolve()
        for path in folder.rglob(files):
            relative = path.relative_to(folder).as_posix()
            hashes.setdefault(path, hashlib.sha256(relative.encode()).hexdigest())
    for path in sorted(hashes, key=lambda path: (hashes[path], path)):
        try:
            if path.stat().st_size <= LONGEST:
                yield path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def _tokens(count: int, encode: Encode, files: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens for training and validation."""
    train: list[np.ndarray] = []
    validation: list[np.ndarray] = []
    total = 0
    texts = _texts(files)
    blocks = iter(lambda: list(islice(texts, BLOCK)), [])
    for number, tokens in enumerate(chain.from_iterable(map(encode, blocks))):
        if number % HELD_OUT == 0:
            validation.append(tokens)
            continue
        train.append(tokens)
        total += len(tokens)
        if total >= count:
            break
    return np.concatenate(train)[:count], np.concatenate(validation)


def _bytes(texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(bytearray(text.encode()), np.uint16) for text in texts]


def _bpe(folder: Path, vocabulary: int, characters: int) -> Encode:
    """A tokenizer, trained on Python source files once for all texts in this folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    path = folder / f"tokenizer-{vocabulary}.json"
    if path.exists():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        sample = _first(_texts(SOURCES), min(SAMPLE, characters))
        tokenizer.train_from_iterator(sample, trainer)
        tokenizer.save(str(path))
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    return lambda texts: [np.array(x.ids, dtype=np.uint16) for x in encode(texts)]


def _first(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        characters -= len(text)
        if characters <= 0:
            break


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
