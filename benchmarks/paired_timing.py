"""Seconds of several ways to do the same, taken in turns, so that a noisy machine is so
to all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import process_time

# Turns that are not counted: what is compiled is compiled in them.
WARM_UP = 2


def seconds_in_turns(
    ways: Mapping[str, Callable[[], None]], repeats: int
) -> dict[str, float]:
    """Median seconds of the process of each way, over so many turns.

    In a turn a way goes twice, and the second time counts: its memory is its own then,
    as where it goes all the time.
    """
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + WARM_UP):
        for way, step in ways.items():
            step()
            start = process_time()
            step()
            times[way].append(process_time() - start)
    return {way: median(some[WARM_UP:]) for way, some in times.items()}
