"""Text data: the source code of Python's standard library."""

import sysconfig
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from meta_train.problems.supervised import Batch, Examples, Splits

# Pure Python files of at least four blocks that seldom change. They still differ in
# some lines between versions of Python, and so do losses in their last digits.
FILES = tuple(
    """
    _pydecimal.py base64.py codecs.py concurrent/futures/_base.py configparser.py
    difflib.py doctest.py email/_header_value_parser.py email/header.py
    email/headerregistry.py email/message.py ftplib.py gettext.py heapq.py
    http/cookiejar.py imaplib.py logging/handlers.py mailbox.py optparse.py
    pickletools.py pprint.py smtplib.py statistics.py textwrap.py tomllib/_parser.py
    trace.py tracemalloc.py weakref.py xmlrpc/client.py xmlrpc/server.py
    zoneinfo/_zoneinfo.py
    """.split()
)

# Tab and newline, the printable characters of ASCII, and one for all others.
CHARACTERS = "\t\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(CHARACTERS) + 1

BLOCK = 4096  # characters; a block belongs to one split
BLOCKS_PER_CYCLE = 10  # the ninth is for validation, the tenth for test
TRAIN_STRIDE = 16  # characters between the starts of training windows
EVALUATION_WINDOWS = 400  # enough to distinguish losses that differ by .01


@cache
def next_characters(length: int) -> Splits:
    """Windows of text, to predict each next character from those before."""
    text, ends = library_text()
    return windows_of(text, window_starts(ends, length + 1), length)


def windows_of(text: Tensor, starts: Sequence[Tensor], length: int) -> Splits:
    """Windows (b, length) of a text, and the character after each of theirs.

    text: (characters,) int64 codes. starts: (n,) int64 for each split, positions of the
    windows.
    """

    def next_codes(begins: Tensor) -> Batch:
        codes = text[begins[:, None] + torch.arange(length + 1)]
        return codes[:, :-1], codes[:, 1:]

    return _splits(starts, next_codes)


@cache
def files_of_windows(length: int) -> Splits:
    """Windows (b, length) of text, to classify by the file of `FILES` they begin in."""
    text, ends = library_text()

    def with_files(begins: Tensor) -> Batch:
        codes = text[begins[:, None] + torch.arange(length)]
        return codes, torch.searchsorted(ends, begins, right=True)

    return _splits(window_starts(ends, length), with_files)


def _splits(starts: Sequence[Tensor], batch: Callable[[Tensor], Batch]) -> Splits:
    """Splits of windows. batch: the examples at some positions (b,)."""

    def of_split(begins: Tensor) -> Examples:
        return Examples(len(begins), lambda indices: batch(begins[indices]))

    return Splits(*map(of_split, starts))


@cache
def library_text() -> tuple[Tensor, Tensor]:
    """Codes of all files in sequence, (characters,), and the end of each, (files,).

    Raises ValueError if this Python lacks one of the files.
    """
    texts = [source(file) for file in FILES]
    ends = torch.tensor([len(text) for text in texts]).cumsum(0)
    return encoded("".join(texts)), ends


def source(file: str) -> str:
    """The text of a file of the standard library.

    Raises ValueError if this Python lacks it.
    """
    path = Path(sysconfig.get_paths()["stdlib"]) / file
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"standard library file '{path}': expected for problems on text; {error}"
        ) from error


def encoded(text: str) -> Tensor:
    """Codes (characters,): the index in `CHARACTERS`, or its length for others."""
    other = len(CHARACTERS)
    indices = {c: i for i, c in enumerate(CHARACTERS)}
    return torch.tensor([indices.get(c, other) for c in text])


def window_starts(
    ends: Tensor,
    length: int,
    cycle: int = BLOCKS_PER_CYCLE,
    evaluated: int = EVALUATION_WINDOWS,
) -> tuple[Tensor, Tensor, Tensor]:
    """The starts of the windows of each split.

    ends: (files,), the end of each file. cycle: the number of blocks of which one is
    for validation and one for test. evaluated: the maximum number of windows of
    validation and of test.

    No window crosses a block or a file, and windows of evaluation do not overlap. Each
    file starts a new block, so a change of one file does not move the blocks of others.
    """
    blocks = []
    positions = []  # of the blocks in their cycles
    begin = 0
    for file, end in enumerate(ends.tolist()):
        numbers = torch.arange((end - begin) // BLOCK)
        blocks.append(begin + numbers * BLOCK)
        positions.append((file + numbers) % cycle)
        begin = end
    block = torch.cat(blocks)
    position = torch.cat(positions)
    train = _starts(block[position < cycle - 2], length, TRAIN_STRIDE)
    validation = _starts(block[position == cycle - 2], length, length)
    test = _starts(block[position == cycle - 1], length, length)
    return train, _sample(validation, evaluated), _sample(test, evaluated)


def _starts(blocks: Tensor, length: int, stride: int) -> Tensor:
    """Starts of windows in the blocks that start at these positions."""
    return (blocks[:, None] + torch.arange(0, BLOCK - length + 1, stride)).flatten()


def _sample(starts: Tensor, count: int) -> Tensor:
    """At most `count` of the starts, in random order."""
    generator = torch.Generator().manual_seed(0)
    return starts[torch.randperm(len(starts), generator=generator)[:count]]


TEXT_32 = partial(next_characters, 32)
TEXT_48 = partial(next_characters, 48)
TEXT_64 = partial(next_characters, 64)
TEXT_96 = partial(next_characters, 96)
