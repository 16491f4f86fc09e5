"""Errors that programs print as one line, without a traceback, and their messages."""

from collections.abc import Iterator
from contextlib import contextmanager


class PlainError(RuntimeError):
    """An error that programs print as one line, without a traceback."""


@contextmanager
def prefixed_errors(what: str) -> Iterator[None]:
    """Puts the offender, such as a file, before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
