"""Ctrl-C: what is done whole or not at all, and what a program prints before it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 130
"""Of a program that Ctrl-C ended, as of shells."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message that says what is kept and how to go on."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the body is done; then KeyboardInterrupt is raised.

    Outside of the main thread, which alone gets signals, nothing changes.
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
