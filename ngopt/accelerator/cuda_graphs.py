"""Steps as CUDA graphs: the host makes one launch instead of hundreds.

A step of a network of 25 M parameters takes 3 ms of an H100, and 5 to 20 ms of the host
that launches its 400 kernels. A graph works on fixed addresses, so gradients are copied
first. These copies, and the memory for intermediate results that all graphs share, stay
allocated.
"""

import gc
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, _foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

from ngopt.roles.buckets import Bucket

logger = logging.getLogger("ngopt")

MAX_SHARE = 1 / 64  # of a device's memory that copies of gradients may take
STABLE_STEPS = 8  # steps with tensors in the same places before a capture


def supports_cuda_graphs(like: Tensor, count: int) -> bool:
    """Whether steps are replayed; like: has dtype and device, count: of elements."""
    if like.device.type != "cuda" or torch.version.hip:
        return False
    memory = torch.cuda.get_device_properties(like.device).total_memory
    return count * like.itemsize <= MAX_SHARE * memory


class WeightRows(NamedTuple):
    """Where the weights of a bucket's rows are. A matrix may end within a row."""

    addresses: Tensor  # of the first weight of each row, (rows,) int64
    counts: Tensor  # weights in each row, (rows,) int32


class StepBuffers(NamedTuple):
    """Copies of gradients, and places of weights.

    grads: of each parameter. rows: gradients of a bucket, (rows, lanes), of which
    `grads` holds views; of buckets without them gradients have to be gathered.
    weights: of buckets whose weights a kernel can change.
    """

    grads: list[Tensor]
    rows: dict[Bucket, Tensor]
    weights: dict[Bucket, WeightRows]


def step_buffers(
    buckets: Sequence[Bucket], grads: Sequence[Tensor], params: Sequence[Tensor]
) -> StepBuffers:
    """grads, params: of each parameter."""
    copies: dict[int, Tensor] = {}
    rows: dict[Bucket, Tensor] = {}
    weights: dict[Bucket, WeightRows] = {}
    for bucket in buckets:
        zeros = _gradient_rows(bucket, grads)
        if zeros is not None:
            rows[bucket] = zeros
            parts = bucket.parts.split(zeros)
            for entry, part in zip(bucket.entries, parts, strict=True):
                copies[entry.parameter] = part
        places = _weight_rows(bucket, params)
        if places is not None:
            weights[bucket] = places
    buffers = []
    for i, grad in enumerate(grads):
        buffers.append(copies[i] if i in copies else torch.empty_like(grad))
    return StepBuffers(buffers, rows, weights)


def _gradient_rows(bucket: Bucket, grads: Sequence[Tensor]) -> Tensor | None:
    """Zeros for the gradients of a bucket; None if they have no views of their own."""
    owned = [grads[entry.parameter] for entry in bucket.entries]
    is_whole = not any(entry.layout.view for entry in bucket.entries)
    if not is_whole or len({grad.dtype for grad in owned}) > 1:
        return None
    rows = owned[0].new_zeros(len(bucket.owners), bucket.pieces.lanes)
    place = rows.untyped_storage().data_ptr()
    for part in bucket.parts.split(rows):
        if part.untyped_storage().data_ptr() != place:
            return None  # a copy: there are gaps between matrices
    return rows


def _weight_rows(bucket: Bucket, params: Sequence[Tensor]) -> WeightRows | None:
    """None if weights are not contiguous float32."""
    addresses = []
    counts = []
    lanes = bucket.pieces.lanes
    for entry in bucket.entries:
        p = params[entry.parameter]
        elements = entry.layout.select(p) if p.is_contiguous() else p
        if p.dtype != torch.float32 or not elements.is_contiguous():
            return None
        matrices = entry.layout.shape[0]
        size = entry.numel // matrices
        starts = torch.arange(0, size, lanes, device=p.device)
        offsets = (torch.arange(matrices, device=p.device) * size)[:, None] + starts
        addresses.append(elements.data_ptr() + offsets.flatten() * p.itemsize)
        counts.append((size - starts).clamp(max=lanes).repeat(matrices))
    return WeightRows(torch.cat(addresses), torch.cat(counts).int())


class GraphCache:
    """CUDA graphs of a step, one for each phase of the renewals."""

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._places: Any = None
        self._stable_steps = 0  # number of steps with these places
        self._buffers: StepBuffers | None = None  # that graphs read
        self._pool: Any = None  # memory of all graphs
        self._stream: Any = None  # of all captures: free memory belongs to a stream
        self._is_refused = False
        self._is_copied = False  # whether the buffers have the step's gradients

    def copy(self, grads: Sequence[Tensor]) -> None:
        """Copies gradients for a graph, if there is one that takes such gradients.

        Called before `run`, so that the device copies while the host prepares a step.
        """
        buffers = self._buffers if self._graphs else None
        self._is_copied = buffers is not None and self._places[0] == _kinds(grads)
        if buffers is not None and self._is_copied:
            _foreach_copy_(buffers.grads, list(grads))

    def run(
        self,
        phase: Hashable,
        grads: Sequence[Tensor],
        others: Sequence[Tensor],
        make_buffers: Callable[[], StepBuffers],
        work: Callable[[StepBuffers], None],
    ) -> bool:
        """Replays a graph of the work, or returns False and does nothing.

        others: all other tensors of a step. work: launches kernels that read copies of
        gradients; it has no effects on the host that a step needs.
        """
        is_copied = self._is_copied
        self._is_copied = False
        places = _kinds(grads), [(x.data_ptr(), x.stride()) for x in others]
        if places != self._places:
            is_copied = False
            self._clear()
            self._places = places
            self._stable_steps = 0
        self._stable_steps += 1
        if self._is_refused or self._stable_steps <= STABLE_STEPS:
            return False
        if phase not in self._graphs:
            self._capture(phase, make_buffers, work)
        if self._is_refused or self._buffers is None:
            return False
        if not is_copied:
            _foreach_copy_(self._buffers.grads, list(grads))
        self._graphs[phase].replay()
        return True

    def _clear(self) -> None:
        """Drops all graphs, and their memory with them."""
        self._graphs.clear()
        self._buffers, self._pool = None, None

    def _capture(
        self,
        phase: Hashable,
        make_buffers: Callable[[], StepBuffers],
        work: Callable[[StepBuffers], None],
    ) -> None:
        """Adds a graph; if CUDA raises an error, there are no more graphs."""
        try:
            buffers = self._buffers = self._buffers or make_buffers()
            device = buffers.grads[0].device
            graph = torch.cuda.CUDAGraph()
            self._stream = self._stream or torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._stream), _without_collection():
                # other threads, such as those that load data, may use CUDA
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work(buffers)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            logger.info("NGOptimizer: no CUDA graph of a step: %s", error)
            self._clear()
            self._is_refused = True
            return
        self._pool = graph.pool()
        self._graphs[phase] = graph


def _kinds(grads: Sequence[Tensor]) -> list[Any]:
    return [(x.stride(), x.dtype) for x in grads]


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without garbage collection: freeing a graph would end a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
