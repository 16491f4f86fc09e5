"""Steps that repeat, as CUDA graphs: the host makes one launch instead of hundreds.

A step of a network of 25 M parameters keeps an H100 busy for 3 ms, and the host that
launches its 400 kernels for 5 to 20. A graph works on fixed addresses, so that
gradients, which are elsewhere at every step, are copied first. These copies and the
memory for intermediate results, which all graphs share, stay.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, _foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

logger = logging.getLogger("ngopt")

SHARE = 1 / 64  # of a device's memory that copies of gradients may take
STABLE = 8  # steps with tensors in the same places: what moves is not worth a capture


def has_graphs(like: Tensor, count: int) -> bool:
    """Whether steps of so many elements, like these, are replayed."""
    if like.device.type != "cuda" or torch.version.hip:
        return False
    memory = torch.cuda.get_device_properties(like.device).total_memory
    return count * like.itemsize <= SHARE * memory


class Replays:
    """CUDA graphs of a step, one for each phase of the renewals."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._places: Any = None
        self._same = 0  # steps that they have been the same
        self._grads: list[Tensor] = []  # what graphs read
        self._pool: Any = None  # memory of all graphs
        self._stream: Any = None  # of all captures: what is free belongs to a stream
        self._is_refused = False

    def run(
        self,
        phase: Hashable,
        grads: Sequence[Tensor],
        others: Sequence[Tensor],
        work: Callable[[Sequence[Tensor]], None],
    ) -> bool:
        """Does the work by a graph, or returns False, having done nothing.

        others: all that a step works on beside gradients. work: launches kernels, given
        gradients; what it does on the host is of no consequence.
        """
        kinds = [(x.stride(), x.dtype) for x in grads]
        places = kinds, [(x.data_ptr(), x.stride()) for x in others]
        if places != self._places:
            self._clear()
            self._places, self._same = places, 0
        self._same += 1
        if self._is_refused or self._same <= STABLE:
            return False
        if phase not in self._graphs:
            self._capture(phase, grads, work)
            if self._is_refused:
                return False
        _foreach_copy_(self._grads, list(grads))
        self._graphs[phase].replay()
        return True

    def _clear(self) -> None:
        """Drops all graphs, and their memory with them."""
        self._graphs.clear()
        self._grads, self._pool = [], None

    def _capture(
        self,
        phase: Hashable,
        grads: Sequence[Tensor],
        work: Callable[[Sequence[Tensor]], None],
    ) -> None:
        """Adds a graph, unless CUDA refuses, as for lack of memory."""
        device, graph = grads[0].device, torch.cuda.CUDAGraph()
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        try:
            self._grads = self._grads or [torch.empty_like(x) for x in grads]
            with torch.cuda.stream(self._stream), _without_collection():
                # other threads, as those that load data, go on meanwhile
                mode = "thread_local"
                graph.capture_begin(pool=self._pool, capture_error_mode=mode)
                try:
                    work(self._grads)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            logger.info("NGOptimizer: no CUDA graph of a step: %s", error)
            self._clear()
            self._is_refused = True
            return
        self._pool = graph.pool()
        self._graphs[phase] = graph


@contextmanager
def _without_collection() -> Iterator[None]:
    """No graph that nobody needs is freed within: that would end a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
