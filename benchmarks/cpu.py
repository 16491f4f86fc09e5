"""Time of calls on this machine's CPU."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter, process_time

WARM_UP = 2  # turns that are not counted, in which functions are compiled


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def rates_in_turns(
    functions: Mapping[str, Callable[[], None]], repeats: int, count: int
) -> dict[str, float]:
    """Networks per second of two functions, and the ratio of the first to the second.

    A turn calls each function twice and times the second call, whose caches are warm.
    Turns alternate, so that noise of the machine affects them alike. Rates are those of
    the median process time over `repeats` turns. count: of networks.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + WARM_UP):
        for name, function in functions.items():
            function()
            start = process_time()
            function()
            times[name].append(process_time() - start)
    seconds = {name: median(turns[WARM_UP:]) for name, turns in times.items()}
    first, second = seconds.values()
    rates = {name: count / taken for name, taken in seconds.items()}
    return {**rates, "ratio": second / first}
