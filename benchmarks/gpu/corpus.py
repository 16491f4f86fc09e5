"""Source files of the machine as tokens, for a language model."""

import hashlib
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.gpu.session import Session
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
    for number, tokens in enumerate(_encoded(_texts(files), encode)):
        if number % HELD_OUT == 0:
            validation.append(tokens)
            continue
        train.append(tokens)
        total += len(tokens)
        if total >= count:
            break
    return np.concatenate(train)[:count], np.concatenate(validation)


def _encoded(texts: Iterator[str], encode: Encode) -> Iterator[np.ndarray]:
    while block := list(islice(texts, BLOCK)):
        yield from encode(block)


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
