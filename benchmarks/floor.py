"""Speed of this machine at matrix products and memory traffic."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

WIDTH = 32  # of a metanet
COLUMNS = 2048, 8192  # few enough to stay in a cache
LONG = 1 << 26  # elements of a tensor too large for caches
REPETITIONS = 20


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


def flops_of(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in a call."""
    with _Counter() as counter:
        call()
    return counter.flops


class _Counter(TorchDispatchMode):
    """Counts FLOPs.

    `FlopCounterMode` also registers gradient hooks on the inputs of modules, which
    fails for leaves.
    """

    flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        counted = flop_registry.get(func.overloadpacket)
        if counted is not None:
            self.flops += counted(*args, **kwargs, out_val=out)
        return out


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def _fastest(call: Callable[[], object]) -> float:
    call()
    return min(seconds_of(call) for _ in range(REPETITIONS))
