"""Text that every Python has: sources of its standard library."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from meta_train.problems.supervised import Batch, Splits

# Pure Python in every distribution of it, of four blocks or more, and seldom touched.
# Versions still differ in some lines, so losses are the same to the last digit only
# under one version.
FILES = tuple(
    """
    _pydecimal.py base64.py codecs.py concurrent/futures/_base.py configparser.py difflib.py
    doctest.py email/_header_value_parser.py email/header.py email/headerregistry.py
    email/message.py ftplib.py gettext.py heapq.py http/cookiejar.py imaplib.py
    logging/handlers.py mailbox.py optparse.py pickletools.py pprint.py smtplib.py statistics.py
    textwrap.py tomllib/_parser.py trace.py tracemalloc.py weakref.py xmlrpc/client.py
    xmlrpc/server.py zoneinfo/_zoneinfo.py
    """.split()
)

# Tab and newline, the printable characters of ASCII, and one for all others.
CHARACTERS = "\t\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(CHARACTERS) + 1

BLOCK = 4096  # characters that go into one split together
BLOCKS_PER_CYCLE = 10  # the ninth is for validation, the tenth for test
TRAIN_STRIDE = 16  # characters between the beginnings of training windows
EVALUATION_WINDOWS = 400  # enough to tell losses .01 apart


@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of text that begin at given places.

    text: (characters,) int64 codes
    starts: (n,) int64
    """

    text: Tensor
    starts: Tensor
    length: int

    def __len__(self) -> int:
        return len(self.starts)

    def codes(self, indices: Tensor, length: int) -> Tensor:
        """(b, length) int64"""
        return self.text[self.starts[indices, None] + torch.arange(length)]

    def batch(self, indices: Tensor) -> Batch:
        """Characters, and to each the next one: two times (b, length)."""
        codes = self.codes(indices, self.length + 1)
        return codes[:, :-1], codes[:, 1:]


@dataclass(frozen=True, eq=False)
class FileOfWindow(Windows):
    """Stretches of text with the number of the file that each begins in.

    ends: (files,) int64, the place after each file's last character.
    """

    ends: Tensor

    def batch(self, indices: Tensor) -> Batch:
        """Characters (b, length), and the file (b,)."""
        files = torch.searchsorted(self.ends, self.starts[indices], right=True)
        return self.codes(indices, self.length), files


@cache
def next_characters(length: int) -> Splits:
    """Windows of text, to predict every next character from those before."""
    text, ends = library_text()
    parts = window_starts(ends, length + 1)
    return Splits(*(Windows(text, starts, length) for starts in parts))


@cache
def files_of_windows(length: int) -> Splits:
    """Windows of text, to tell which of `FILES` each is from."""
    text, ends = library_text()
    parts = window_starts(ends, length)
    return Splits(*(FileOfWindow(text, starts, length, ends) for starts in parts))


@cache
def library_text() -> tuple[Tensor, Tensor]:
    """All files behind one another as codes (characters,), and where each ends
    (files,).

    Raises ValueError if this Python comes without one of the files.
    """
    texts = [source(file) for file in FILES]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    return encoded("".join(texts)), ends


def source(file: str) -> str:
    """The text of a file of the standard library.

    Raises ValueError if this Python comes without it.
    """
    path = Path(sysconfig.get_paths()["stdlib"]) / file
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        message = (
            f"standard library file '{path}': expected for problems on text; {error}"
        )
        raise ValueError(message) from error


def encoded(text: str) -> Tensor:
    """Codes (characters,): places in `CHARACTERS`, and one for all other characters."""
    code = {character: number for number, character in enumerate(CHARACTERS)}
    return torch.tensor([code.get(c, len(code)) for c in text])


def window_starts(
    ends: Tensor,
    length: int,
    cycle: int = BLOCKS_PER_CYCLE,
    evaluated: int = EVALUATION_WINDOWS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the windows of each split begin, from where each file ends.

    cycle: one block of so many is for validation, one for test.
    evaluated: the most windows of validation and of test.

    None leaves its block or file; none of evaluation overlap. Each file has its own
    blocks, so that a version's change to one file moves no other, and has some of them
    in training.
    """
    begins = [0, *ends[:-1].tolist()]
    blocks, places = [], []
    for number, (begin, end) in enumerate(zip(begins, ends.tolist(), strict=True)):
        numbers = torch.arange((end - begin) // BLOCK)
        blocks.append(begin + numbers * BLOCK)
        places.append((number + numbers) % cycle)
    block = torch.cat(blocks)
    place = torch.cat(places)
    train = _starts(block[place < cycle - 2], length, TRAIN_STRIDE)
    held_out = (block[place == cycle - k] for k in (2, 1))
    validation, test = (
        _spread(_starts(part, length, length), evaluated) for part in held_out
    )
    return train, validation, test


def _starts(blocks: Tensor, length: int, stride: int) -> Tensor:
    """blocks: where they begin."""
    return (blocks[:, None] + torch.arange(0, BLOCK - length + 1, stride)).flatten()


def _spread(starts: Tensor, count: int) -> Tensor:
    """At most so many, from everywhere, in no order: the first are like the others."""
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))
    return starts[order[:count]]
