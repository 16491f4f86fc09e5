"""Milliseconds, kernels and memory of a step on a device."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.session import Session
from benchmarks.records import Record

WARM_UP, REPEATS = 100, 20
TINY_WARM_UP, TINY_REPEATS = 2, 3
LONGEST = 6.0  # maximum seconds of warm-up and timed steps
MIB = 1 << 20

Step = Callable[[], object]


def timed(session: Session, step: Step, prepare: Step | None = None) -> Record:
    """Times of a step, each between two synchronisations, after a warm-up.

    ms, worst_ms: median and maximum of the steps. first_s: seconds of the first step.

    prepare: called before every step, outside of its time. Slow steps are repeated less
    often.
    """

    def seconds() -> float:
        if prepare is not None:
            prepare()
        session.synchronize()
        start = perf_counter()
        step()
        session.synchronize()
        return perf_counter() - start

    counts = (TINY_WARM_UP, TINY_REPEATS) if session.tiny else (WARM_UP, REPEATS)
    longest = min(LONGEST, max(session.left(), 0))
    warm_up = _repeated(seconds, counts[0], longest / 2)
    times = _repeated(seconds, counts[1], longest / 2)
    return {
        "ms": 1e3 * median(times),
        "worst_ms": 1e3 * max(times),
        "steps": len(times),
        "first_s": warm_up[0],
    }


def _repeated(seconds: Callable[[], float], count: int, longest: float) -> list[float]:
    """`count` times; fewer, but at least one, if their sum reaches `longest`."""
    times = [seconds()]
    while len(times) < count and sum(times) < longest:
        times.append(seconds())
    return times


def transient_bytes(session: Session, step: Step) -> int | None:
    """Peak GPU memory during a step, above that before it."""
    if not session.is_cuda:
        step()
        return None
    session.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    session.synchronize()
    return torch.cuda.max_memory_allocated() - before


def unallocated_bytes(session: Session) -> int | None:
    """GPU memory that is reserved but not allocated: that of CUDA graphs."""
    if not session.is_cuda:
        return None
    session.free_memory()
    return torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def mib(count: int | None) -> float | None:
    return None if count is None else count / MIB


def profiled(session: Session, step: Step, steps: int) -> Record:
    """Kernels, copies and device milliseconds of a step: means over `steps` steps."""
    if not session.is_cuda:
        return {"kernels": None, "copies": None, "device_ms": None}
    session.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        session.synchronize()
    kernels = copies = 0
    microseconds = 0.0
    for event in profiler.events() or []:
        if event.device_type == DeviceType.CUDA:
            is_copy = event.name.startswith(("Memcpy", "Memset"))
            copies += is_copy
            kernels += not is_copy
            microseconds += event.time_range.elapsed_us()
    return {
        "kernels": kernels / steps,
        "copies": copies / steps,
        "device_ms": 1e-3 * microseconds / steps,
    }
