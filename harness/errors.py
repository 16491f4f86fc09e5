"""Errors that programs print as one line, without a traceback, and Ctrl-C."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 130
"""Exit status of a program that was ended by Ctrl-C, as in shells."""


class PlainError(RuntimeError):
    """An error that programs print as one line, without a traceback."""


@contextmanager
def prefixed_errors(what: str) -> Iterator[None]:
    """Puts the offender, such as a file, before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message about what was saved and how to resume."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays KeyboardInterrupt until the body is finished.

    Does nothing outside of the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt
