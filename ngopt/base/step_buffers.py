"""Memory at fixed addresses for steps that are replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.buckets import Bucket


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
        own = _gradient_rows(bucket, grads)
        if own is not None:
            rows[bucket] = own
            parts = bucket.parts.split(own)
            for entry, part in zip(bucket.entries, parts, strict=True):
                copies[entry.parameter] = part
        places = _weight_rows(bucket, params)
        if places is not None:
            weights[bucket] = places
    found = []
    for i, grad in enumerate(grads):
        found.append(copies[i] if i in copies else torch.empty_like(grad))
    return StepBuffers(found, rows, weights)


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
        own = entry.layout.of(p) if p.is_contiguous() else p
        if p.dtype != torch.float32 or not own.is_contiguous():
            return None
        matrices = entry.layout.shape[0]
        size = entry.numel // matrices
        starts = torch.arange(0, size, lanes, device=p.device)
        firsts = torch.arange(matrices, device=p.device) * size
        offsets = firsts[:, None] + starts
        addresses.append(own.data_ptr() + offsets.flatten() * p.itemsize)
        counts.append((size - starts).clamp(max=lanes).repeat(matrices))
    return WeightRows(torch.cat(addresses), torch.cat(counts).int())
