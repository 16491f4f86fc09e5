"""The state of many parameters in a few tensors, of which their records hold views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.buckets import Bucket, Factors, Member, make_buckets
from ngopt.base.first_steps import StepSizeFactors
from ngopt.functional import Record, state_dtype
from ngopt.packing import PackedState, Packing, Pieces, scalars
from ngopt.roles.kronecker_factors import Axis, MatrixLayout, is_measured

# Factors and bases of more rows are bfloat16: rounding is far below their noise.
EXACT = 512
TINY = 1e-30
SCALES = ("scale", "rms", "skipped", *StepSizeFactors._fields, "path", "distance")


def first_record(p: Tensor, layouts: Sequence[MatrixLayout]) -> Record:
    """The state of a parameter before its first gradient.

    step: gradients so far, () on the host. scale, rms: see `GradientScale`; skipped:
    how many gradients were not finite; offset to density: see `StepSizeFactors`; path: sum of the
    squares of steps; distance: its square from the initial value; (). displacement: the
    difference from the initial value, of measured parameters. Of the matrices with
    layout number i: exp_avg_i, momentum, and exp_avg_sq_i, sums of squares in the
    eigenbases, (groups, rows, channels, kernel) both; for each axis, such as "rows",
    Kronecker factors rows_i and their eigenvectors rows_basis_i, (groups * parts, size,
    size).
    """
    dtype = state_dtype(p)
    record = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    record |= {key: p.new_zeros((), dtype=dtype) for key in SCALES}
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

    rounds: buckets (see `Bucket`) in turn. keys: of the factors of every size, and of
    their places in records.
    """

    def __init__(
        self,
        layouts: Sequence[Sequence[MatrixLayout]],
        like: Tensor,
        rounds: Sequence[Sequence[int]] | None = None,
        moved: Sequence[Bucket] | None = None,
    ):
        """layouts: of each parameter; none of those that others update. like: has the
        dtype and device of the state. rounds: parameters that are updated together;
        None: all. moved: buckets of the parameters that change, if these are others.
        """
        self.dtype, self.device = like.dtype, like.device
        self._count = len(layouts)
        members = members_of(layouts)
        some = [members] if rounds is None else [_among(members, x) for x in rounds]
        self.rounds = [make_buckets(own, self.device) for own in some]
        self.buckets = list(chain.from_iterable(self.rounds))
        self.keys = factor_keys([bucket.stacks for bucket in self.buckets])
        for bucket, own in zip(self.buckets, _factors(self.buckets), strict=True):
            bucket.factors = own
        owners = [[k.parameter] * k.count for own in self.keys.values() for k in own]
        owners = list(chain.from_iterable(owners))
        self._owners = torch.tensor(owners, dtype=torch.int64, device=self.device)
        packings = [_of_bucket(bucket, "exp_avg") for bucket in self.buckets]
        packings += [_of_bucket(bucket, "exp_avg_sq") for bucket in self.buckets]
        packings += [_of_factors(own, "") for own in self.keys.values()]
        packings += [_of_factors(own, "_basis") for own in self.keys.values()]
        self._step = len(packings)  # number of the packing
        packings.append(scalars(len(layouts), ["step"], torch.device("cpu")))
        packings.append(scalars(len(layouts), SCALES, self.device))
        buckets = self.buckets if moved is None else moved
        self._measured = [bucket for bucket in buckets if bucket.measured]
        packings += map(_of_measured, self._measured)
        self.packed = PackedState(packings)

    def open(self, records: Sequence[Record], in_place: bool) -> StackedState:
        """The state that records hold; see `PackedState.open`."""
        values = iter(tensors := self.packed.open(records, in_place))
        return StackedState(
            momentum=[next(values) for _ in self.buckets],
            second=[next(values) for _ in self.buckets],
            factors={size: next(values) for size in self.keys},
            bases={size: next(values) for size in self.keys},
            step=next(values)[0],
            scales=next(values),
            displacement={bucket: next(values) for bucket in self._measured},
            tensors=tensors,
        )

    def of_factors(self, numbers: Tensor) -> dict[int, Tensor]:
        """(k, parameters) -> of the factors of every size, (k, count, 1, 1)."""
        found = numbers.index_select(1, self._owners)[:, :, None, None]
        pieces = found.split(list(counts_of(self.keys).values()), 1)
        return dict(zip(self.keys, pieces, strict=True))

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


class FactorKey(NamedTuple):
    """Of the factors of an axis of a parameter."""

    parameter: int
    key: str  # of records, a format
    count: int


Keys = dict[int, list[FactorKey]]  # of the factors of every size


def members_of(layouts: Sequence[Sequence[MatrixLayout]]) -> list[Member]:
    """Of all parameters; layouts: of each."""
    members: list[Member] = []
    for i, own in enumerate(layouts):
        has = is_measured(own)
        members += [Member(i, number, x, has) for number, x in enumerate(own)]
    return members


def _among(members: Sequence[Member], parameters: Sequence[int]) -> list[Member]:
    wanted = set(parameters)
    return [m for m in members if m.parameter in wanted]


def factor_keys(buckets: Sequence[Sequence[Sequence[Member]]]) -> Keys:
    """Those of all factors, largest first; buckets: their stacks."""
    found: Keys = {}
    for stack in chain.from_iterable(buckets):
        for axis in stack[0].layout.axes:
            found.setdefault(axis.size, []).extend(_axis_keys(stack, axis))
    return dict(sorted(found.items(), reverse=True))


def _axis_keys(stack: Sequence[Member], axis: Axis) -> list[FactorKey]:
    key = f"{axis.name}{{}}_"
    counts = [m.layout.shape[0] * axis.parts for m in stack]
    pairs = zip(stack, counts, strict=True)
    return [FactorKey(m.parameter, f"{key}{m.number}", count) for m, count in pairs]


def counts_of(keys: Keys) -> dict[int, int]:
    """How many factors there are of every size."""
    return {size: sum(key.count for key in own) for size, own in keys.items()}


def _factors(buckets: Sequence[Bucket]) -> Iterator[list[Factors]]:
    """Of the stacks of every bucket: in turn, as `factor_keys` has them."""
    ends: dict[int, int] = {}
    for bucket in buckets:
        own = []
        for number, stack in enumerate(bucket.stacks):
            for axis in stack[0].layout.axes:
                start = ends.get(axis.size, 0)
                end = start + sum(key.count for key in _axis_keys(stack, axis))
                ends[axis.size] = end
                own.append(Factors(number, axis, slice(start, end)))
        yield own


def _of_bucket(bucket: Bucket, key: str) -> Packing:
    places = [(m.parameter, f"{key}_{m.number}") for m in bucket.members]
    return Packing(places, bucket.pieces.join, bucket.pieces.split)


def _of_measured(bucket: Bucket) -> Packing:
    shapes = [m.layout.shape for m in bucket.measured]
    pieces = Pieces(shapes, bucket.pieces.lanes)
    places = [(m.parameter, "displacement") for m in bucket.measured]
    return Packing(places, pieces.join, pieces.split)


def _of_factors(some: Sequence[FactorKey], kind: str) -> Packing:
    places = [(own.parameter, own.key.format(kind)) for own in some]
    counts = [own.count for own in some]
    return Packing(places, lambda x: torch.cat(list(x)), lambda x: x.split(counts))
