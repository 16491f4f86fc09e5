"""Says that a trace takes long, while it does."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TextIO

SECONDS = 10.0
"""After which a trace is long."""

logger = logging.getLogger("ngopt")


@contextmanager
def said_if_long(name: str) -> Iterator[None]:
    """Logs once, after `SECONDS`, that a module with this name is still traced."""
    # a thread, as modes and hooks would change what torch.export does
    timer = Timer(SECONDS, _say, (name, sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _say(name: str, stderr: TextIO) -> None:
    message = (
        f"build_graph: tracing {name} takes more than {SECONDS:.0f} s, once. Loops are "
        "traced step by step. To shorten it, pass graph=build_graph(module, "
        "shorter_example) to the optimizer, or named_parameters() without model=."
    )
    level = logging.WARNING
    if logger.getEffectiveLevel() > level:
        return
    # a capture disables logging and redirects stderr: neither is changed here, as
    # they belong to all threads
    if logger.hasHandlers():
        record = logger.makeRecord(logger.name, level, __file__, 0, message, (), None)
        logger.handle(record)
    else:
        print(message, file=stderr)
