"""Many tensors as a few: the state of all parameters, of which records hold views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import prod
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ngopt.functional import Record


class Packing(NamedTuple):
    """A tensor of which records hold views.

    places: (number of a record, key) of each view. join: views to tensor; split: back.
    """

    places: Sequence[tuple[int, str]]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]

    def put(self, records: Sequence[Record], tensor: Tensor) -> Sequence[Tensor]:
        """Makes records hold views of a tensor; returns these."""
        views = self.split(tensor)
        for (i, key), view in zip(self.places, views, strict=True):
            records[i][key] = view
        return views


class PackedState:
    """Several packings of the same records."""

    def __init__(self, packings: Sequence[Packing]):
        self.packings = packings
        self._places = [place for packing in packings for place in packing.places]
        self._tensors: list[Tensor] = []
        self._views: list[Tensor] = []

    def open(self, records: Sequence[Record], in_place: bool) -> list[Tensor]:
        """The tensors: copies or, in place, those of which records then hold views.

        The views are made once, and anew when a record holds something else, as after
        loading: one tensor after the other, so that little is there twice.
        """
        if not in_place:
            return [self._joined(packing, records).clone() for packing in self.packings]
        if self._is_open(records):
            return self._tensors
        self._tensors, self._views = [], []
        for packing in self.packings:
            tensor = self._joined(packing, records)
            self._views += packing.put(records, tensor)
            self._tensors.append(tensor)
        return self._tensors

    def close(self, records: Sequence[Record], tensors: Sequence[Tensor]) -> None:
        """Puts copies that were opened, and have changed, into records."""
        for packing, tensor in zip(self.packings, tensors, strict=True):
            packing.put(records, tensor)

    def _joined(self, packing: Packing, records: Sequence[Record]) -> Tensor:
        return packing.join([records[i][key] for i, key in packing.places])

    def replace(self, records: Sequence[Record], number: int, tensor: Tensor) -> None:
        """Another tensor of a packing, opened in place."""
        start = sum(len(packing.places) for packing in self.packings[:number])
        views = self.packings[number].put(records, tensor)
        self._tensors[number] = tensor
        self._views[start : start + len(views)] = views

    def _is_open(self, records: Sequence[Record]) -> bool:
        held = [records[i][key] for i, key in self._places]
        return len(held) == len(self._views) and all(map(is_, held, self._views))


class Pieces:
    """Matrices of these shapes in rows of so many lanes, one behind the other.

    Each begins with a row; what is left of its last one are zeros.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], lanes: int):
        """shapes: (matrices, *matrix) each."""
        self.shapes, self.lanes = shapes, lanes
        sizes = [prod(shape[1:]) for shape in shapes]
        counts = [shape[0] if shape else 1 for shape in shapes]
        self.gaps = [-size % lanes for size in sizes]
        self._has_gaps = any(self.gaps)
        pairs = zip(counts, sizes, strict=True)
        self.rows = [count * -(-size // lanes) for count, size in pairs]

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Values of all pieces -> (rows, lanes); may be a view."""
        if self._has_gaps:
            rows = zip(values, self.shapes, self.gaps, strict=True)
            values = [
                pad(x.reshape(n[0], -1), (0, gap)) if gap else x for x, n, gap in rows
            ]
        if not all(x.is_contiguous() for x in values):
            values = _contiguous(values)
        pieces = [x.reshape(-1) for x in values]
        flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return flat.view(-1, self.lanes)

    def split(self, bucket: Tensor) -> list[Tensor]:
        """The inverse, as views."""
        pieces = torch.split_with_sizes(bucket, self.rows)
        if self._has_gaps:
            rows = zip(pieces, self.shapes, self.gaps, strict=True)
            pieces = [x.view(n[0], -1)[:, :-gap] if gap else x for x, n, gap in rows]
        return [x.view(shape) for x, shape in zip(pieces, self.shapes, strict=True)]


def _contiguous(values: Sequence[Tensor]) -> list[Tensor]:
    """The same, those of one shape joined in one call where each needs a copy."""
    found: list[Tensor] = []
    for _, same in groupby(values, lambda x: x.shape):
        run = list(same)
        is_ready = all(x.is_contiguous() for x in run)
        found += run if is_ready else [torch.cat(run)]
    return found


def scalars(count: int, keys: Sequence[str]) -> Packing:
    """Scalars of so many records as a tensor (keys, count)."""
    return Packing(
        places=[(i, key) for key in keys for i in range(count)],
        join=lambda values: torch.stack(list(values)).view(len(keys), count),
        split=lambda tensor: tensor.flatten().unbind(),
    )


def unshare(records: Iterable[Record]) -> None:
    """Copies views, each of which would keep all of a joined tensor alive."""
    for record in records:
        for key, value in record.items():
            if value.untyped_storage().nbytes() > value.numel() * value.itemsize:
                record[key] = value.clone()
