"""The state of many parameters in a few tensors, of which their records hold views."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.base.buckets import Bucket, BucketEntry, Factors, Stack, make_buckets
from ngopt.base.first_steps import StepSizeFactors
from ngopt.functional import Record, state_dtype
from ngopt.packing import PackedState, Packing, PaddedRows, scalar_packing
from ngopt.roles.kronecker_factors import Layouts, is_measured

# Factors and bases of more rows are bfloat16: rounding is far below their noise.
FLOAT32_ROWS = 512
TINY = 1e-30
SCALES = ("scale", "rms", "skipped", *StepSizeFactors._fields, "path", "distance")


def first_record(p: Tensor, layouts: Layouts) -> Record:
    """The state of a parameter before its first gradient.

    Scalars, (), on the device except `step`:
        step: gradients so far, on the host.
        scale, rms: see `GradientScale`. skipped: gradients that were not finite.
        offset, ..., density: see `StepSizeFactors`.
        path: sum of squared steps. distance: squared, from the initial value.
    displacement: from the initial value, if `is_measured`.
    Of the matrices of layout i:
        exp_avg_i: momentum, exp_avg_sq_i: second moments in the eigenbases / (1 - b2);
            (groups, rows, channels, kernel).
        rows_i: Kronecker factors, rows_basis_i: their eigenbases, of each axis such as
            "rows"; (groups * parts, size, size).
    """
    dtype = state_dtype(p)
    record = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    for key in SCALES:
        record[key] = p.new_zeros((), dtype=dtype)
    record["path"].fill_(TINY)  # a divisor
    for i, layout in enumerate(layouts):
        for key in ("exp_avg", "exp_avg_sq"):
            record[f"{key}_{i}"] = p.new_zeros(layout.shape, dtype=dtype)
        for axis in layout.axes:
            n = axis.size
            count = layout.shape[0] * axis.parts
            is_exact = n <= FLOAT32_ROWS or dtype == torch.float64
            factor_dtype = dtype if is_exact else torch.bfloat16
            zeros = p.new_zeros(count, n, n, dtype=factor_dtype)
            eye = torch.eye(n, dtype=factor_dtype, device=p.device)
            record[f"{axis.name}_{i}"] = zeros
            record[f"{axis.name}_basis_{i}"] = zeros + eye
    if is_measured(layouts):
        record["displacement"] = p.new_zeros(layouts[0].shape, dtype=dtype)
    return record


class StackedState(NamedTuple):
    """The state of n parameters."""

    momentum: dict[Bucket, Tensor]  # (rows, lanes)
    second: dict[Bucket, Tensor]  # second moments, likewise
    factors: dict[int, Tensor]  # by size, (count, size, size)
    bases: dict[int, Tensor]
    step: Tensor  # (n,), on the host
    scales: Tensor  # of `SCALES`, (fields, n)
    displacement: dict[Bucket, Tensor]  # of buckets with measured entries
    tensors: list[Tensor]  # all of these, for `PackedState.close`


class ParameterStack:
    """Parameters of one dtype and device that are updated together.

    rounds: buckets that are updated one after the other. keys: places of the factors of
    every size in records.
    """

    def __init__(
        self,
        layouts: Sequence[Layouts],
        like: Tensor,
        rounds: Sequence[Sequence[int]] | None = None,
        moved: Sequence[Bucket] | None = None,
    ):
        """layouts: of each parameter; () of those that other processes own.

        like: has the dtype and device of the state. rounds: parameters of each round;
        None: one round of all. moved: buckets of the parts that change, if they are not
        the buckets of the state.
        """
        self.dtype = like.dtype
        self.device = like.device
        self._count = len(layouts)
        if rounds is None:
            rounds = [range(len(layouts))]
        self.rounds: list[list[Bucket]] = []
        for parameters in rounds:
            entries = entries_of(layouts, parameters)
            self.rounds.append(make_buckets(entries, self.device))
        self.buckets = list(chain.from_iterable(self.rounds))
        factors, self.keys = factors_of(bucket.stacks for bucket in self.buckets)
        for bucket, own in zip(self.buckets, factors, strict=True):
            bucket.factors = own
        owners: list[int] = []
        for key in chain.from_iterable(self.keys.values()):
            owners += [key.parameter] * key.count
        self._owners = torch.tensor(owners, dtype=torch.int64, device=self.device)
        moved = self.buckets if moved is None else moved
        self._measured = [bucket for bucket in moved if bucket.measured]
        self.packed = PackedState(self._packings())

    def _packings(self) -> list[Packing]:
        """In the order in which `open` takes them."""
        found = []
        for key in ("exp_avg", "exp_avg_sq"):
            for bucket in self.buckets:
                found.append(_packing(bucket.entries, f"{key}_{{}}", bucket.pieces))
        for kind in ("", "_basis"):
            for keys in self.keys.values():
                found.append(_factor_packing(keys, kind))
        self._step = len(found)  # index of the packing of steps
        cpu = torch.device("cpu")
        found.append(scalar_packing(self._count, ["step"], cpu))
        found.append(scalar_packing(self._count, SCALES, self.device))
        for bucket in self._measured:
            shapes = [entry.layout.shape for entry in bucket.measured]
            pieces = PaddedRows(shapes, bucket.pieces.lanes)
            found.append(_packing(bucket.measured, "displacement", pieces))
        return found

    def open(self, records: Sequence[Record], in_place: bool) -> StackedState:
        """The state in records; see `PackedState.open`."""
        tensors = self.packed.open(records, in_place)
        values = iter(tensors)
        momentum = dict(zip(self.buckets, values, strict=False))
        second = dict(zip(self.buckets, values, strict=False))
        factors = dict(zip(self.keys, values, strict=False))
        bases = dict(zip(self.keys, values, strict=False))
        step = next(values)[0]
        scales = next(values)
        displacement = dict(zip(self._measured, values, strict=True))
        return StackedState(
            momentum, second, factors, bases, step, scales, displacement, tensors
        )

    def of_factors(self, values: Tensor) -> dict[int, Tensor]:
        """(k, parameters) -> (k, count, 1, 1) of the factors of every size."""
        found = values.index_select(1, self._owners)[:, :, None, None]
        counts = counts_of(self.keys).values()
        pieces = found.split(list(counts), 1)
        return dict(zip(self.keys, pieces, strict=True))

    def squares(self, values: Mapping[Bucket, Tensor]) -> Tensor:
        """Sums of squares of every parameter, (n,), without gradients."""
        total = torch.zeros(self._count, dtype=self.dtype, device=self.device)
        for bucket, own in values.items():
            rows = own.detach().square().sum(1)
            total = total.index_add(0, bucket.owners, rows)
        return total

    def count_on_device(self, records: Sequence[Record], step: Tensor) -> None:
        """Replaces the steps in records by views of `step`, (n,), on the device."""
        self.packed.replace(records, self._step, step.view(1, -1))


class FactorKey(NamedTuple):
    """Kronecker factors of an axis of a parameter."""

    parameter: int
    key: str  # of records: a format with the kind "" or "_basis"
    count: int


def entries_of(
    layouts: Sequence[Layouts], parameters: Sequence[int]
) -> list[BucketEntry]:
    """Entries of some parameters; layouts: of each parameter."""
    entries: list[BucketEntry] = []
    for i in sorted(parameters):
        for number, layout in enumerate(layouts[i]):
            entries.append(BucketEntry(i, number, layout, is_measured(layouts[i])))
    return entries


def factors_of(
    buckets: Iterable[Sequence[Stack]],
) -> tuple[list[list[Factors]], dict[int, list[FactorKey]]]:
    """The factors of every bucket, and keys of all by size, the largest first.

    buckets: their stacks.
    """
    factors: list[list[Factors]] = []
    found: dict[int, list[FactorKey]] = {}
    ends: Counter[int] = Counter()
    for stacks in buckets:
        factors.append([])
        for number, stack in enumerate(stacks):
            layout = stack[0].layout
            for axis in layout.axes:
                count = layout.shape[0] * axis.parts
                keys = found.setdefault(axis.size, [])
                for entry in stack:
                    key = f"{axis.name}{{}}_{entry.number}"
                    keys.append(FactorKey(entry.parameter, key, count))
                start = ends[axis.size]
                end = start + len(stack) * count
                ends[axis.size] = end
                factors[-1].append(Factors(number, axis, slice(start, end)))
    return factors, dict(sorted(found.items(), reverse=True))


def counts_of(keys: Mapping[int, Sequence[FactorKey]]) -> dict[int, int]:
    """Number of factors of every size."""
    counts = {}
    for size, own in keys.items():
        counts[size] = sum(key.count for key in own)
    return counts


def _packing(entries: Sequence[BucketEntry], key: str, pieces: PaddedRows) -> Packing:
    """key: a format with the number of the layout."""
    places = [(entry.parameter, key.format(entry.number)) for entry in entries]
    return Packing(places, pieces.join, pieces.split)


def _factor_packing(keys: Sequence[FactorKey], kind: str) -> Packing:
    """kind: "" for factors, "_basis" for eigenbases."""
    places, counts = [], []
    for own in keys:
        places.append((own.parameter, own.key.format(kind)))
        counts.append(own.count)
    return Packing(places, torch.cat, lambda tensor: tensor.split(counts))
