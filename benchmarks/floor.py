"""How fast this machine is at what a step is made of: matrix products, and memory
traffic."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

WIDTH, COLUMNS = (
    32,
    (2048, 8192),
)  # of a metanet, and elements that stay in a cache
LONG = 1 << 26  # numbers of a tensor that is in no cache
REPETITIONS = 20


class Machine(NamedTuple):
    """flops: of matrix products of a metanet's size, a second. bytes: moved by a copy,
    a second."""

    flops: float
    bytes: float

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for so many operations and so many bytes."""
        return flops / self.flops + moved / self.bytes


def measured() -> Machine:
    """This machine, with as many threads as torch has now."""
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
    """Torch's own counter follows modules too, for which it hooks into gradients of
    what they read; leaves that are read by a module cannot be hooked into."""

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
    """How long a call takes."""
    start = perf_counter()
    call()
    return perf_counter() - start


def _fastest(call: Callable[[], object]) -> float:
    call()
    return min(seconds_of(call) for _ in range(REPETITIONS))
