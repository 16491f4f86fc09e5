"""Time and memory of calls on this machine's CPU, and the speed of the machine."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

WIDTH = 32  # of a metanet
COLUMNS = 2048, 8192  # few enough to stay in a cache
LONG = 1 << 26  # elements of a tensor too large for caches
REPETITIONS = 20
WARM_UP = 2  # turns that are not counted, in which functions are compiled
PROCESS = Path("/proc/self")


class Machine(NamedTuple):
    """Rates of this machine.

    flops: FLOPs per second of matrix products of a metanet's size. bytes: bytes per
    second that a copy reads and writes.
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, moved: float) -> float:
        """The minimum time for these numbers of FLOPs and bytes."""
        return flops / self.flops + moved / self.bytes


def measured() -> Machine:
    """The rates of this machine with torch's current number of threads."""
    rates = []
    for columns in COLUMNS:
        weight = torch.randn(WIDTH, WIDTH)
        values = torch.randn(WIDTH, columns)
        out = torch.empty(WIDTH, columns)
        seconds = _fastest(lambda w=weight, x=values, o=out: torch.mm(w, x, out=o))
        rates.append(2 * WIDTH * WIDTH * columns / seconds)
    source = torch.ones(LONG)
    target = torch.empty(LONG)
    seconds = _fastest(lambda: target.copy_(source))
    return Machine(max(rates), 2 * source.nbytes / seconds)


def _fastest(call: Callable[[], object]) -> float:
    call()
    return min(seconds_of(call) for _ in range(REPETITIONS))


def flops_of(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


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
    Turns alternate, so that noise of the machine affects both. Rates are those of the
    median process time over `repeats` turns. count: of networks.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + WARM_UP):
        for name, function in functions.items():
            function()
            start = process_time()
            function()
            times[name].append(process_time() - start)
    seconds = {name: median(found[WARM_UP:]) for name, found in times.items()}
    own, peer = seconds.values()
    rates = {name: count / taken for name, taken in seconds.items()}
    return {**rates, "ratio": peer / own}


class Peak:
    """Peak resident memory in bytes since construction, above that at construction.

    The constructor returns free memory to the system, so that its reuse is counted.
    Linux with glibc only.
    """

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")  # resets VmHWM to VmRSS
        self.before = _resident("VmRSS")

    def bytes(self) -> int:
        return _resident("VmHWM") - self.before


def _resident(key: str) -> int:
    status = (PROCESS / "status").read_text()
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])
