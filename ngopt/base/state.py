"""The state of many parameters in a few tensors, of which their records hold views."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.buckets import Bucket, Factors, Member, make_buckets
from ngopt.base.partition import MatrixLayout, is_measured
from ngopt.base.start import Start
from ngopt.functional import Record, state_dtype
from ngopt.packing import PackedState, Packing, Pieces, scalars

# Factors and bases of more rows are bfloat16: rounding is far below their noise.
EXACT = 512
TINY = 1e-30
SCALES = ("scale", "rms", "skipped", *Start._fields, "path", "distance")


def first_record(p: Tensor, layouts: Sequence[MatrixLayout]) -> Record:
    """The state of a parameter before its first gradient.

    step: gradients so far, () on the host. scale, rms: see `GradientScale`; skipped:
    how many gradients were not finite; offset to density: see `Start`; path: sum of the
    squares of steps; distance: its square from the initial value; (). displacement: the
    difference from the initial value, of measured parameters. Of the matrices with
    layout number i: exp_avg_i, momentum, and exp_avg_sq_i, sums of squares in the
    eigenbases, (groups, rows, channels, kernel) both; for each axis, such as "rows",
    Kronecker factors rows_i and their eigenvectors rows_basis_i, (groups * parts, size,
    size).
    """
    dtype = state_dtype(p)
    record = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    record |= {key: p.new_zeros((), dtype=torch.float32) for key in SCALES}
    record["path"].fill_(TINY)  # which is divided by
    for i, layout in enumerate(layouts):
        for key in ("exp_avg", "exp_avg_sq"):
            record[f"{key}_{i}"] = p.new_zeros(layout.shape, dtype=dtype)
        for axis in layout.axes:
            n, count = axis.size, layout.shape[0] * axis.parts
            is_exact = n <= EXACT or dtype == torch.float64
            zeros = p.new_zeros(
                count, n, n, dtype=dtype if is_exact else torch.bfloat16
            )
            eye = torch.eye(n, dtype=zeros.dtype, device=p.device)
            record[f"{axis.name}_{i}"] = zeros
            record[f"{axis.name}_basis_{i}"] = zeros + eye
    if is_measured(layouts):
        record["displacement"] = p.new_zeros(layouts[0].shape, dtype=dtype)
    return record


class StackedState(NamedTuple):
    """The state of n parameters."""

    momentum: list[Tensor]  # of each bucket, (rows, lanes)
    second: list[Tensor]
    factors: dict[int, Tensor]  # by size, (count, size, size)
    bases: dict[int, Tensor]
    step: Tensor  # (n,), on the host
    scales: Tensor  # of `SCALES`, (fields, n)
    displacement: dict[Bucket, Tensor]  # of those with measured members, (rows, lanes)
    tensors: list[Tensor]  # all of these, for `PackedState.close`


class ParameterStack:
    """Parameters of one dtype and device that are updated together.

    buckets: see `Bucket`. counts: of the factors of every size.
    """

    def __init__(self, layouts: Sequence[Sequence[MatrixLayout]], like: Tensor):
        """layouts: of each parameter. like: has the dtype and device of the state."""
        self.dtype, self.device = like.dtype, like.device
        self._count = len(layouts)
        members: list[Member] = []
        for i, own in enumerate(layouts):
            has = is_measured(own)
            members += [Member(i, number, x, has) for number, x in enumerate(own)]
        self.buckets = make_buckets(members, self.device)
        factors = _place_factors(self.buckets)
        self.counts = {n: sum(f[2] for f in some) for n, some in factors.items()}
        owners = [[i] * count for some in factors.values() for i, _, count in some]
        owners = list(chain.from_iterable(owners))
        self._owners = torch.tensor(owners, dtype=torch.int64, device=self.device)
        packings = [_of_bucket(bucket, "exp_avg") for bucket in self.buckets]
        packings += [_of_bucket(bucket, "exp_avg_sq") for bucket in self.buckets]
        packings += [_of_factors(some, "") for some in factors.values()]
        packings += [_of_factors(some, "_basis") for some in factors.values()]
        self._step = len(packings)  # number of the packing
        packings.append(scalars(len(layouts), ["step"], torch.device("cpu")))
        packings.append(scalars(len(layouts), SCALES, self.device))
        self._measured = [bucket for bucket in self.buckets if bucket.measured]
        packings += map(_of_measured, self._measured)
        self.packed = PackedState(packings)

    def open(self, records: Sequence[Record], in_place: bool) -> StackedState:
        """The state that records hold; see `PackedState.open`."""
        values = iter(tensors := self.packed.open(records, in_place))
        return StackedState(
            momentum=[next(values) for _ in self.buckets],
            second=[next(values) for _ in self.buckets],
            factors={size: next(values) for size in self.counts},
            bases={size: next(values) for size in self.counts},
            step=next(values)[0],
            scales=next(values),
            displacement={bucket: next(values) for bucket in self._measured},
            tensors=tensors,
        )

    def of_factors(self, numbers: Tensor) -> dict[int, Tensor]:
        """(k, parameters) -> of the factors of every size, (k, count, 1, 1)."""
        found = numbers.index_select(1, self._owners).view(len(numbers), -1, 1, 1)
        pieces = found.split(list(self.counts.values()), 1)
        return dict(zip(self.counts, pieces, strict=True))

    def squares(self, values: Sequence[Tensor]) -> Tensor:
        """Sums of squares of every parameter, (n,), constants; values: of buckets."""
        found = torch.zeros(self._count, dtype=self.dtype, device=self.device)
        for bucket, own in zip(self.buckets, values, strict=True):
            rows = own.detach().square().sum(1)
            found = found.index_add(0, bucket.owners, rows)
        return found

    def count_on_device(self, records: Sequence[Record], step: Tensor) -> None:
        """Makes records hold views of steps (n,) on the device, not on the host."""
        self.packed.replace(records, self._step, step.view(1, -1))


Key = tuple[int, str, int]  # of an axis: parameter, format of the keys, number


def _place_factors(buckets: Sequence[Bucket]) -> dict[int, list[Key]]:
    """The factors of every size, largest first; tells the buckets which are theirs."""
    found: dict[int, list[Key]] = {}
    for bucket in buckets:
        for number, stack in enumerate(bucket.stacks):
            for axis in stack[0].layout.axes:
                same = found.setdefault(axis.size, [])
                start = sum(count for *_, count in same)
                for m in stack:
                    key = f"{axis.name}{{}}_{m.number}"
                    same.append((m.parameter, key, m.layout.shape[0] * axis.parts))
                end = sum(count for *_, count in same)
                bucket.factors.append(Factors(number, axis, slice(start, end)))
    return dict(sorted(found.items(), reverse=True))


def _of_bucket(bucket: Bucket, key: str) -> Packing:
    places = [(m.parameter, f"{key}_{m.number}") for m in bucket.members]
    return Packing(places, bucket.pieces.join, bucket.pieces.split)


def _of_measured(bucket: Bucket) -> Packing:
    shapes = [m.layout.shape for m in bucket.measured]
    pieces = Pieces(shapes, bucket.pieces.lanes)
    places = [(m.parameter, "displacement") for m in bucket.measured]
    return Packing(places, pieces.join, pieces.split)


def _of_factors(some: Sequence[Key], kind: str) -> Packing:
    places = [(parameter, key.format(kind)) for parameter, key, _ in some]
    counts = [count for *_, count in some]
    return Packing(places, lambda x: torch.cat(list(x)), lambda x: x.split(counts))
