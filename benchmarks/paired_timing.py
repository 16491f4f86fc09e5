"""Times alternatives in turns, so that noise of the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import process_time

WARM_UP = 2  # turns that are not counted, in which functions are compiled


def seconds_in_turns(
    functions: Mapping[str, Callable[[], None]], repeats: int
) -> dict[str, float]:
    """Median process time of each function over `repeats` turns, in seconds.

    A turn calls each function twice and times the second call, whose caches are warm.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + WARM_UP):
        for name, function in functions.items():
            function()
            start = process_time()
            function()
            times[name].append(process_time() - start)
    return {name: median(seconds[WARM_UP:]) for name, seconds in times.items()}
