"""State of several processes in the form of a single one, for state_dicts and back.

Tensors that one process owns become DTensors of the whole, which
`torch.distributed.checkpoint` saves and loads under any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.base.state import first_record
from ngopt.distributed.exchange import Exchange
from ngopt.distributed.ownership import Ownership, by_one, place_of_rows
from ngopt.distributed.shards import Shards
from ngopt.functional import AVERAGE, Record
from ngopt.roles.kronecker_factors import MatrixLayout
from ngopt.shard_layout import as_dtensor, is_dtensor, local, whole

MOVED = "displacement"  # which each process has of its own parts


class Entry(NamedTuple):
    """A tensor of the state of a parameter, as a single process has it."""

    parameter: int
    key: str
    like: Tensor  # on the meta device


class ShardedState:
    """Of parameters that processes share."""

    def __init__(
        self,
        shards: Shards,
        params: Sequence[Tensor],
        layouts: Sequence[Sequence[MatrixLayout]],
    ):
        self._shards, self._params, self._layouts = shards, params, layouts

    def whole(self, records: Sequence[Record]) -> list[Record]:
        """Records whose tensors are of whole parameters, DTensors; all processes call
        it."""
        found = [dict(record) for record in records]
        self._average(found)
        entries = list(self._entries(records))
        moved = [e.parameter for e in entries if e.key == MOVED]
        for i, value in self._gathered_displacements(moved, records).items():
            found[i][MOVED] = value
        for dtype in {e.like.dtype: None for e in entries}:
            some = [e for e in entries if e.like.dtype == dtype]
            values = self._divided(some, found)
            for entry, value in zip(some, values, strict=True):
                found[entry.parameter][entry.key] = value
        # in one order in all processes, as those gather them who save one state of all
        return [dict(sorted(record.items())) for record in found]

    def own(self, records: Sequence[Record]) -> list[Record]:
        """What this process holds of such records, or of those of a single process."""
        found = [dict(record) for record in records]
        for i, key, like in self._entries(records):
            value: Any = found[i].pop(key, None)
            if value is None:
                continue
            if is_dtensor(value):
                value = value.full_tensor()
            if value.shape != like.shape:
                raise ValueError(
                    f"state_dict: '{key}' of parameter {i}: expected shape "
                    f"{tuple(like.shape)}; got {tuple(value.shape)}"
                )
            if key == MOVED:
                found[i][key] = self._part_of_displacement(i, value)
            else:
                found[i][key] = self._own_part(i, key, value)
        for i, record in enumerate(found):
            average = record.get(AVERAGE)
            if average is not None and not self._shards.alone[i]:
                record[AVERAGE] = self._part(i, average)
        return found

    def _own_part(self, i: int, key: str, value: Tensor) -> Tensor:
        """Of a tensor of the whole state of a parameter."""
        if not self._shards.is_own(i):
            return value.new_empty(0)
        own = self._owned(i, key, value)
        if not own.is_divided:  # what is there once is needed by all owners
            return value
        return own.domains[self._shards.rank].of(value).contiguous()

    def _entries(self, records: Sequence[Record]) -> Iterator[Entry]:
        for i, record in enumerate(records):
            if record and not self._shards.alone[i]:
                shape, p = self._shards.shapes[i], self._params[i]
                like = torch.empty(shape, dtype=p.dtype.to_real(), device="meta")
                for key, value in first_record(like, self._layouts[i]).items():
                    if value.dim():
                        yield Entry(i, key, value)

    def _owned(self, i: int, key: str, like: Tensor) -> Ownership:
        """Of a tensor of the whole state of a parameter."""
        own, shape = self._shards.owned[i], tuple(like.shape)
        if not own.is_divided or not key.startswith("exp_avg"):
            return by_one(own.first, self._shards.size, shape)
        (layout,) = self._layouts[i]
        domains = [place_of_rows(layout, rows) for rows in own.domains]
        return Ownership(own.first, tuple(domains))

    def _average(self, records: Sequence[Record]) -> None:
        params: Sequence[Any] = self._params
        for p, record in zip(params, records, strict=True):
            if AVERAGE in record and is_dtensor(p):
                mesh, placements = p.device_mesh, p.placements
                record[AVERAGE] = as_dtensor(record[AVERAGE], mesh, placements, p)

    def _part(self, i: int, value: Any) -> Tensor:
        """What this process holds of a value that is divided as a parameter is."""
        p: Any = self._params[i]
        if is_dtensor(value) and is_dtensor(p) and value.placements == p.placements:
            return local(value)
        if is_dtensor(value):
            value = value.full_tensor()
        return self._shards.own(i).of(value).contiguous()

    def _gathered_displacements(
        self, parameters: Sequence[int], records: Sequence[Record]
    ) -> dict[int, Tensor]:
        """Of owned parameters, in the layout of their matrices."""
        if not parameters:
            return {}
        shards = self._shards.of(parameters).undivided()
        exchange = Exchange(shards, range(len(parameters)))
        values = {}
        for n, i in enumerate(parameters):
            value, shape = records[i][MOVED], shards.own(n).shape
            # one process has it of each part
            values[n] = value.view(shape) if value.numel() else value.new_empty(shape)
        found = {}
        for n, value in exchange.domains(values, exchange.to_owners(values)).items():
            (layout,) = self._layouts[parameters[n]]
            found[parameters[n]] = layout.of(value).reshape(layout.shape)
        return found

    def _part_of_displacement(self, i: int, value: Tensor) -> Tensor:
        (layout,) = self._layouts[i]
        whole = value.new_empty(self._shards.shapes[i])
        place = layout.of(whole)
        place.copy_(value.reshape(place.shape))
        part = self._shards.own(i).of(whole).reshape(1, 1, -1, 1)
        return part if self._shards.counts[i] else part[:, :, :0]

    def _divided(
        self, entries: Sequence[Entry], records: Sequence[Record]
    ) -> list[Tensor]:
        """Tensors that owners have as DTensors, of which each process holds a part."""
        from torch.distributed.tensor import Shard

        shapes = [tuple(e.like.shape) for e in entries]
        owned = [self._owned(*entry) for entry in entries]
        dims = [max(range(len(shape)), key=lambda d: shape[d]) for shape in shapes]
        size, pairs = self._shards.size, list(zip(shapes, dims, strict=True))
        pieces = [
            [whole(shape).chunk(dim, rank, size) for shape, dim in pairs]
            for rank in range(size)
        ]
        shards = self._shards.with_pieces(shapes, owned, pieces)
        exchange = Exchange(shards, range(len(entries)))
        values = {
            n: records[entries[n].parameter][entries[n].key] for n in exchange.owned
        }
        device = local(self._params[0]).device
        like = torch.empty(0, dtype=entries[0].like.dtype, device=device)
        parts = exchange.parts(values, exchange.to_holders(values, like), like)
        mesh = self._shards.mesh(device.type)
        return [
            as_dtensor(parts[n], mesh, [Shard(dims[n])], entry.like)
            for n, entry in enumerate(entries)
        ]
