"""The Python source files of the machine as tokens, for a language model."""

import hashlib
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.gpu.session import Session
from harness.files import make_folder
from ngopt.pretrained.tensor_files import atomic_write

VOCABULARY = 8192
BYTES = 256  # the vocabulary without `tokenizers`
SAMPLE = 8_000_000  # maximum characters for training the tokenizer
LONGEST = 1_000_000  # bytes of a file; longer files are skipped as data
HELD_OUT = 50  # files, of which one is for validation
BLOCK = 256  # files that are encoded together


class Corpus(NamedTuple):
    """train, validation: (n,) uint16 each. tokenizer: "BPE" or "bytes"."""

    train: np.ndarray
    validation: np.ndarray
    vocabulary: int
    tokenizer: str


def load_corpus(session: Session, count: int, vocabulary: int = VOCABULARY) -> Corpus:
    """At most `count` training tokens, cached in the session's folder."""
    name = "BPE" if find_spec("tokenizers") else "bytes"
    size = vocabulary if name == "BPE" else BYTES
    folder = session.folder / "tokens"
    make_folder(folder)
    path = folder / f"{name}-{size}-{count}.npz"
    if not path.exists():
        train, validation = _tokens(count, size if name == "BPE" else None)
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez(file, train=train, validation=validation)
    with np.load(path) as tokens:
        return Corpus(tokens["train"], tokens["validation"], size, name)


def _texts() -> Iterator[str]:
    """The files of this Python's library and packages, in a fixed random order."""
    hashes: dict[Path, str] = {}
    for key in ("stdlib", "purelib"):
        folder = Path(sysconfig.get_paths()[key]).resolve()
        for path in folder.rglob("*.py"):
            relative = path.relative_to(folder).as_posix()
            hashes.setdefault(path, hashlib.sha256(relative.encode()).hexdigest())
    for path in sorted(hashes, key=lambda path: (hashes[path], path)):
        try:
            if path.stat().st_size <= LONGEST:
                yield path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def _tokens(count: int, vocabulary: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens for training and validation. vocabulary: of BPE; None: bytes."""
    texts = _texts()
    if vocabulary is None:
        encoded = (np.array(bytearray(text.encode()), np.uint16) for text in texts)
    else:
        encoded = _encoded(texts, vocabulary, min(SAMPLE, 4 * count))
    train: list[np.ndarray] = []
    validation: list[np.ndarray] = []
    total = 0
    for number, tokens in enumerate(encoded):
        if number % HELD_OUT == 0:
            validation.append(tokens)
            continue
        train.append(tokens)
        total += len(tokens)
        if total >= count:
            break
    return np.concatenate(train)[:count], np.concatenate(validation)


def _encoded(
    texts: Iterator[str], vocabulary: int, sample: int
) -> Iterator[np.ndarray]:
    """BPE tokens of each text. sample: characters for training the tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    first: list[str] = []
    size = 0
    for text in texts:
        first.append(text)
        size += len(text)
        if size >= sample:
            break
    tokenizer.train_from_iterator(first, trainer)
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    texts = chain(first, texts)
    while block := list(islice(texts, BLOCK)):
        for encoding in encode(block):
            yield np.array(encoding.ids, dtype=np.uint16)
