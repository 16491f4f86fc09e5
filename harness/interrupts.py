"""Handling of Ctrl-C: atomic sections, and the message before a program ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 130
"""Exit status of a program that was ended by Ctrl-C, as in shells."""


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
