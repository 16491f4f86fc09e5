"""Errors that programs print as one line, without a traceback, and their messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngopt.importing import INSTALLED, frames_outside

_ROOT = Path(__file__).parents[1]
_OWN = ("benchmarks", "harness", "meta_train", "ngopt", "tasks")
_FOLDERS = (*INSTALLED, *(_ROOT / name for name in _OWN))


class PlainError(RuntimeError):
    """An error that programs print as one line, without a traceback."""


def passes_user_code(error: BaseException) -> bool:
    """Whether a file of the user is in the traceback: one outside of our packages, of
    Python and of installed packages."""
    return bool(frames_outside(_FOLDERS, error))


@contextmanager
def prefixed_errors(what: str) -> Iterator[None]:
    """Puts the offender, such as a file, before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
