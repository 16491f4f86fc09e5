"""State of several processes in the form of a single one, for state_dicts and back.

Tensors that one process owns become DTensors of the whole tensor, which
`torch.distributed.checkpoint` saves and loads under any number of processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.distributed.exchange import Exchange
from ngopt.distributed.ownership import Ownership, by_one, place_of_rows
from ngopt.distributed.shards import Shards
from ngopt.functional import AVERAGE, Record
from ngopt.roles.buckets import Layouts
from ngopt.shard_layout import Piece, as_dtensor, is_dtensor, local
from ngopt.soap.state import first_record

DISPLACEMENT = "displacement"  # held like parameters, not owned


class Entry(NamedTuple):
    """A tensor of the state of a parameter, as a single process has it."""

    parameter: int
    key: str
    like: Tensor  # on the meta device


@dataclass(frozen=True, eq=False)
class ShardedState:
    """The state of parameters that processes share."""

    shards: Shards
    params: Sequence[Any]
    layouts: Sequence[Layouts]

    def to_dtensors(self, records: Sequence[Record]) -> list[Record]:
        """Records whose tensors are DTensors of whole parameters; collective."""
        of_whole = [dict(record) for record in records]
        for p, record in zip(self.params, of_whole, strict=True):
            if AVERAGE in record and is_dtensor(p):
                average = record[AVERAGE]
                record[AVERAGE] = as_dtensor(average, p.device_mesh, p.placements, p)
        measured = []
        by_dtype: dict[torch.dtype, list[Entry]] = {}
        for entry in self._entries(records):
            by_dtype.setdefault(entry.like.dtype, []).append(entry)
            if entry.key == DISPLACEMENT:
                measured.append(entry.parameter)
        for i, value in self._gathered_displacements(measured, records).items():
            of_whole[i][DISPLACEMENT] = value
        for entries in by_dtype.values():
            values = self._divided(entries, of_whole)
            for entry, value in zip(entries, values, strict=True):
                of_whole[entry.parameter][entry.key] = value
        # the same order in all processes, for collectives over the values of a state
        return [dict(sorted(record.items())) for record in of_whole]

    def to_local(self, records: Sequence[Record]) -> list[Record]:
        """The part of this process of such records, or of those of a single process.

        Raises ValueError if a tensor has another shape.
        """
        local_records = [dict(record) for record in records]
        for i, key, like in self._entries(records):
            value: Any = local_records[i].pop(key, None)
            if value is None:
                continue
            if is_dtensor(value):
                value = value.full_tensor()
            if value.shape != like.shape:
                raise ValueError(
                    f"state_dict: expected '{key}' of parameter {i} of shape "
                    f"{tuple(like.shape)}; got {tuple(value.shape)}"
                )
            if key == DISPLACEMENT:
                local_records[i][key] = self._part_of_displacement(i, value)
            else:
                local_records[i][key] = self._owned_part(i, key, value)
        for i, record in enumerate(local_records):
            average = record.get(AVERAGE)
            if average is not None and not self.shards.local_only[i]:
                record[AVERAGE] = self._held_part(i, average)
        return local_records

    def _owned_part(self, i: int, key: str, value: Tensor) -> Tensor:
        """The part that this process owns of a tensor of the state."""
        if not self.shards.owns(i):
            return value.new_empty(0)
        ownership = self._ownership(i, key, value)
        if not ownership.is_divided:  # several owners of the parameter have all of it
            return value
        return ownership.domains[self.shards.rank].select(value).contiguous()

    def _entries(self, records: Sequence[Record]) -> Iterator[Entry]:
        for i, record in enumerate(records):
            if not record or self.shards.local_only[i]:
                continue
            shape = self.shards.shapes[i]
            dtype = self.params[i].dtype.to_real()
            like = torch.empty(shape, dtype=dtype, device="meta")
            # scalars are not divided
            for key, value in first_record(like, self.layouts[i], {}).items():
                if value.dim():
                    yield Entry(i, key, value)

    def _ownership(self, i: int, key: str, like: Tensor) -> Ownership:
        """The owners of the tensor `key` of the state of parameter i."""
        ownership = self.shards.ownerships[i]
        shape = tuple(like.shape)
        if not ownership.is_divided or not key.startswith("exp_avg"):
            return by_one(ownership.first, self.shards.size, shape)
        (layout,) = self.layouts[i]
        domains = [place_of_rows(layout, rows) for rows in ownership.domains]
        return Ownership(ownership.first, tuple(domains))

    def _held_part(self, i: int, value: Any) -> Tensor:
        """The part that this process holds of a value with a parameter's shape."""
        p = self.params[i]
        if is_dtensor(value) and is_dtensor(p) and value.placements == p.placements:
            return local(value)
        if is_dtensor(value):
            value = value.full_tensor()
        return self.shards.stored(i).select(value).contiguous()

    def _gathered_displacements(
        self, parameters: Sequence[int], records: Sequence[Record]
    ) -> dict[int, Tensor]:
        """Of owned parameters, in the layout of their matrices."""
        if not parameters:
            return {}
        shards = self.shards.of(parameters).undivided()
        exchange = Exchange(shards, range(len(parameters)))
        parts = {}
        for n, i in enumerate(parameters):
            value = records[i][DISPLACEMENT]
            shape = shards.stored(n).shape
            if value.numel():  # each part is stored in one process
                parts[n] = value.view(shape)
            else:
                parts[n] = value.new_empty(shape)
        values = {}
        for n, value in exchange.to_owners(parts)().items():
            (layout,) = self.layouts[parameters[n]]
            values[parameters[n]] = layout.select(value).reshape(layout.shape)
        return values

    def _part_of_displacement(self, i: int, value: Tensor) -> Tensor:
        (layout,) = self.layouts[i]
        of_parameter = value.new_empty(self.shards.shapes[i])
        place = layout.select(of_parameter)
        place.copy_(value.reshape(place.shape))
        part = self.shards.stored(i).select(of_parameter).reshape(1, 1, -1, 1)
        return part if self.shards.counts[i] else part[:, :, :0]

    def _divided(
        self, entries: Sequence[Entry], records: Sequence[Record]
    ) -> list[Tensor]:
        """DTensors of tensors of owners, divided along their longest dimension."""
        from torch.distributed.tensor import Shard

        size = self.shards.size
        shapes, owned, dims = [], [], []
        pieces: list[tuple[Piece, ...]] = []
        for entry in entries:
            shape = tuple(entry.like.shape)
            shapes.append(shape)
            owned.append(self._ownership(*entry))
            dims.append(shape.index(max(shape)))
            every, dim = Piece.full(shape), dims[-1]
            pieces.append(tuple(every.chunk(dim, rank, size) for rank in range(size)))
        shards = self.shards.with_pieces(shapes, owned, pieces)
        exchange = Exchange(shards, range(len(entries)))
        values = {}
        for n in exchange.owned:
            values[n] = records[entries[n].parameter][entries[n].key]
        device = local(self.params[0]).device
        like = torch.empty(0, dtype=entries[0].like.dtype, device=device)
        parts = exchange.to_holders(values, like)()
        mesh = self.shards.collectives.mesh(device.type)
        dtensors = []
        for n, entry in enumerate(entries):
            dtensors.append(as_dtensor(parts[n], mesh, [Shard(dims[n])], entry.like))
        return dtensors
