"""Time of calls on this machine's CPU."""

from collections.abc import Callable
from time import perf_counter


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start
