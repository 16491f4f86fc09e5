"""Memory layout: elementwise work is done on buckets, matrix products on stacks.

A bucket is a matrix (rows, lanes) that holds matrices and vectors of several parameters
one after the other. A row belongs to one parameter, so that scalars of parameters
broadcast as (rows, 1). A stack is all matrices of one layout in a bucket.

The state of many parameters is in a few tensors, of which their records hold views.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from math import prod
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.chunking import chunk_size
from ngopt.functional import Record, state_dtype
from ngopt.packing import PackedState, Packing, PaddedRows, Values, scalar_packing
from ngopt.roles.kronecker_factors import Axis, Layouts, MatrixLayout, is_measured

# Elements of a bucket, unless one entry has more; on CPUs what fits into caches.
BUCKET_ELEMENTS = {"cpu": 1 << 20, "accelerator": 1 << 25}
LANES = 128
FEW_LANES, FEW_ELEMENTS = 16, 1 << 18  # of a bucket with few elements
# Factors and bases of more rows are bfloat16: rounding is far below their noise.
FLOAT32_ROWS = 512
TINY = 1e-30


class BucketEntry(NamedTuple):
    """The matrices of one layout of a parameter."""

    parameter: int
    number: int  # index among the layouts of the parameter
    layout: MatrixLayout
    is_measured: bool = False  # see `is_measured`

    @property
    def numel(self) -> int:
        return prod(self.layout.shape)

    @property
    def kind(self) -> tuple:
        """Equal for entries of one stack; () without Kronecker factors."""
        return self.layout.axes and (self.layout.shape, self.layout.axes)


Stack = list[BucketEntry]
"""Entries of one kind."""


class Factors(NamedTuple):
    """Kronecker factors of an axis of a stack."""

    stack: int  # index of the stack in its bucket
    axis: Axis
    indices: slice  # among all factors of the axis' size


class Bucket:
    """Entries of one dtype and device, those without Kronecker factors last.

    Attributes:
        owners: index of the parameter of each row, (rows,).
        pieces, parts, stacked: how (rows, lanes) splits into matrices of entries, into
            elements of parameters, and into stacks.
        stacks: entries with equal layouts. factors: of the axes of all stacks.
        measured: last entries, whose distance is measured. first: their first row.
    """

    def __init__(self, entries: Sequence[BucketEntry], device: torch.device):
        """entries: those of one kind follow each other."""
        self.entries = entries
        self.stacks = stacks_of(entries)
        self.factors: list[Factors] = []
        self.measured = [entry for entry in entries if entry.is_measured]
        numel = sum(entry.numel for entry in entries)
        lanes = LANES if numel > FEW_ELEMENTS else FEW_LANES
        shapes = [entry.layout.shape for entry in entries]
        parts = [entry.layout.part for entry in entries]
        self.pieces = PaddedRows(shapes, lanes)
        self.parts = PaddedRows(shapes, lanes, parts)
        self.first = sum(self.pieces.rows[: len(entries) - len(self.measured)])
        rows = torch.tensor(self.pieces.rows, device="cpu")
        parameters = torch.tensor([entry.parameter for entry in entries], device="cpu")
        self.owners = parameters.repeat_interleave(rows).to(device)
        self.stacked = PaddedRows(self._stack_shapes(rows, lanes), lanes)

    def _stack_shapes(self, rows: Tensor, lanes: int) -> list[tuple[int, ...]]:
        shapes = []
        for stack in self.stacks:
            layout = stack[0].layout
            groups, *matrix = layout.shape
            if matrix[-1] == 1 and not layout.has_parts:
                matrix.pop()  # without kernel, see `Axis`
            shapes.append((len(stack) * groups, *matrix))
        if not self.entries[-1].kind:  # all without factors are one long row
            rest = len(self.entries) - len(self.stacks[-1])
            length = int(rows[rest:].sum()) * lanes
            shapes[-1] = (1, length)
        return shapes

    def spread(self, scalars: Tensor) -> Sequence[Tensor]:
        """(k, parameters) -> k times (rows, 1)."""
        return scalars.index_select(1, self.owners).unsqueeze(2).unbind()

    def gather(self, values: Values) -> Tensor:
        """Values of parameters -> (rows, lanes) of the entries; may be a view."""
        matrices = []
        for entry in self.entries:
            matrices.append(entry.layout.of(values[entry.parameter]))
        return self.pieces.join(matrices)

    def rotate(
        self, stacks: list[Tensor], bases: Sequence[Tensor], back: bool, write_out: bool
    ) -> Tensor:
        """Stacks -> (rows, lanes) in their eigenbases, or back.

        Args:
            stacks: views of `stacked`; they are replaced.
            bases: of `factors`.
            write_out: whether products are written to their places by `out=`.
        """
        result, places = None, []
        if write_out and len(stacks) > 1 and not self.stacked.has_gaps:
            result = stacks[0].new_empty(len(self.owners), self.stacked.lanes)
            places = self.stacked.split(result)
        last = {factors.stack: k for k, factors in enumerate(self.factors)}
        for k, ((i, axis, _), basis) in enumerate(
            zip(self.factors, bases, strict=True)
        ):
            # the last product of a stack need not be copied
            has_place = places and k == last[i] and stacks[i].dim() == 3
            out = places[i] if has_place else None
            stacks[i] = axis.rotate(stacks[i], basis, back, out)
        if result is None:
            return self.stacked.join(stacks)
        for place, x in zip(places, stacks, strict=True):
            if x is not place:
                place.copy_(x)
        return result


def arranged(
    entries: Sequence[BucketEntry], device: torch.device
) -> list[list[BucketEntry]]:
    """Entries of each bucket; those of one kind follow each other.

    Kinds with few elements share a bucket first, so that large kinds have their own.
    """
    kinds: dict[tuple, list[BucketEntry]] = {}
    numels: Counter[tuple] = Counter()
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
        numels[entry.kind] += entry.numel
    largest = chunk_size(BUCKET_ELEMENTS, device)
    buckets: list[list[BucketEntry]] = []
    free = -1
    for kind in sorted(kinds, key=numels.__getitem__):
        for entry in kinds[kind]:
            if entry.numel > free:
                buckets.append([])
                free = largest
            buckets[-1].append(entry)
            free -= entry.numel
    for of_bucket in buckets:
        of_bucket.sort(key=lambda entry: (entry.is_measured, not entry.kind))
    return buckets


def entries_of(
    layouts: Sequence[Layouts], parameters: Sequence[int]
) -> list[BucketEntry]:
    """Entries of some parameters; layouts: of each parameter."""
    entries: list[BucketEntry] = []
    for i in sorted(parameters):
        for number, layout in enumerate(layouts[i]):
            entries.append(BucketEntry(i, number, layout, is_measured(layouts[i])))
    return entries


def stacks_of(entries: Sequence[BucketEntry]) -> list[Stack]:
    """Entries that follow each other, divided by kind."""
    return [list(stack) for _, stack in groupby(entries, attrgetter("kind"))]


class FactorKey(NamedTuple):
    """Kronecker factors of an axis of a parameter."""

    parameter: int
    key: str  # of records: a format with the kind "" or "_basis"
    count: int


def factors_of(
    buckets: Iterable[Sequence[Stack]],
) -> tuple[list[list[Factors]], dict[int, list[FactorKey]]]:
    """The factors of every bucket, and keys of all by size, the largest first.

    buckets: their stacks.
    """
    factors: list[list[Factors]] = []
    keys: dict[int, list[FactorKey]] = {}
    ends: Counter[int] = Counter()
    for stacks in buckets:
        factors.append([])
        for number, stack in enumerate(stacks):
            layout = stack[0].layout
            for axis in layout.axes:
                count = layout.shape[0] * axis.parts
                for entry in stack:
                    key = f"{axis.name}{{}}_{entry.number}"
                    factor_key = FactorKey(entry.parameter, key, count)
                    keys.setdefault(axis.size, []).append(factor_key)
                start = ends[axis.size]
                ends[axis.size] += len(stack) * count
                factors[-1].append(Factors(number, axis, slice(start, ends[axis.size])))
    return factors, dict(sorted(keys.items(), reverse=True))


def counts_of(keys: Mapping[int, Sequence[FactorKey]]) -> dict[int, int]:
    """Number of factors of every size."""
    return {size: sum(k.count for k in of_size) for size, of_size in keys.items()}


class ScalarState(NamedTuple):
    """Scalars of the state, by name: (n,) each, or of one parameter ().

    Attributes:
        scale, rms: unit of gradients and their running RMS, see `GradientScale`.
        skipped: gradients that were not finite.
        offset, slope: the step size has the factor offset + slope * RMS(weights).
        untrained: from 0, trained and near a minimum, to 1, random weights.
        share: factor of the step size of trained weights.
        agreement: of the first gradients, 0 to 1.
        density: mean share of elements with a gradient, of tables.
        path: sum of squared steps. distance: squared, from the initial value.
    """

    scale: Tensor
    rms: Tensor
    skipped: Tensor
    offset: Tensor
    slope: Tensor
    untrained: Tensor
    share: Tensor
    agreement: Tensor
    density: Tensor
    path: Tensor
    distance: Tensor


def first_record(p: Tensor, layouts: Layouts, scalars: Mapping[str, float]) -> Record:
    """The state of a parameter before its first gradient.

    Scalars, (), on the device except `step`:
        step: gradients so far, on the host.
        those of `ScalarState` and of a multiplier.
    displacement: from the initial value, if `is_measured`.
    Of the matrices of layout i:
        exp_avg_i: momentum, exp_avg_sq_i: second moments in the eigenbases / (1 - b2);
            (groups, rows, channels, kernel).
        rows_i: Kronecker factors, rows_basis_i: their eigenbases, of each axis such as
            "rows"; (groups * parts, size, size).

    Args:
        scalars: names and initial values of the scalars of a multiplier.
    """
    dtype = state_dtype(p)
    record = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    initial = dict.fromkeys(ScalarState._fields, 0.0)
    initial["path"] = TINY  # a divisor
    for key, value in {**initial, **scalars}.items():
        record[key] = p.new_full((), value, dtype=dtype)
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
    scalars: Tensor  # of `ScalarState` and of a multiplier, (fields, n)
    displacement: dict[Bucket, Tensor]  # of buckets with measured entries
    tensors: list[Tensor]  # all of these, for `PackedState.close`


MOVED = slice(len(ScalarState._fields) - 2, len(ScalarState._fields))
"""Rows of `StackedState.scalars` with path and distance."""


class StateLayout:
    """Where the state of n parameters of one dtype and device is.

    Attributes:
        rounds: buckets that are updated one after the other. buckets: all of them.
        keys: places of the factors of every size in records.
    """

    def __init__(
        self,
        layouts: Sequence[Layouts],
        like: Tensor,
        scalars: Sequence[str] = (),
        rounds: Sequence[Sequence[int]] | None = None,
        moved: Sequence[Bucket] | None = None,
    ):
        """layouts: of each parameter; () of those that other processes own.

        Args:
            like: has the dtype and device of the state.
            scalars: names of the scalars of a multiplier.
            rounds: parameters of each round; None: one round of all.
            moved: buckets of the parts that change, if they are not the buckets of the
                state.
        """
        self.dtype = like.dtype
        self.device = like.device
        self._count = len(layouts)
        self.rounds: list[list[Bucket]] = []
        for parameters in rounds or [range(len(layouts))]:
            entries = arranged(entries_of(layouts, parameters), self.device)
            self.rounds.append([Bucket(x, self.device) for x in entries])
        self.buckets = list(chain.from_iterable(self.rounds))
        factors, self.keys = factors_of(bucket.stacks for bucket in self.buckets)
        for bucket, of_bucket in zip(self.buckets, factors, strict=True):
            bucket.factors = of_bucket
        owners: list[int] = []
        for key in chain.from_iterable(self.keys.values()):
            owners += [key.parameter] * key.count
        self._owners = torch.tensor(owners, dtype=torch.int64, device=self.device)
        self._factor_counts = list(counts_of(self.keys).values())
        moved = self.buckets if moved is None else moved
        self._measured = [bucket for bucket in moved if bucket.measured]
        self.packed = PackedState(self._packings([*ScalarState._fields, *scalars]))

    def _packings(self, scalars: Sequence[str]) -> list[Packing]:
        """In the order in which `open` takes them."""
        packings = []
        for key in ("exp_avg", "exp_avg_sq"):
            for bucket in self.buckets:
                packings.append(_packing(bucket.entries, f"{key}_{{}}", bucket.pieces))
        for kind in ("", "_basis"):
            for keys in self.keys.values():
                places = [(k.parameter, k.key.format(kind)) for k in keys]
                split = partial(
                    torch.split, split_size_or_sections=[k.count for k in keys]
                )
                packings.append(Packing(places, torch.cat, split))
        self._step = len(packings)  # index of the packing of steps
        packings.append(scalar_packing(self._count, ["step"], torch.device("cpu")))
        packings.append(scalar_packing(self._count, scalars, self.device))
        for bucket in self._measured:
            shapes = [entry.layout.shape for entry in bucket.measured]
            pieces = PaddedRows(shapes, bucket.pieces.lanes)
            packings.append(_packing(bucket.measured, "displacement", pieces))
        return packings

    def open(self, records: Sequence[Record], in_place: bool) -> StackedState:
        """The state in records; see `PackedState.open`."""
        tensors = self.packed.open(records, in_place)
        values = iter(tensors)
        return StackedState(
            momentum=dict(zip(self.buckets, values, strict=False)),
            second=dict(zip(self.buckets, values, strict=False)),
            factors=dict(zip(self.keys, values, strict=False)),
            bases=dict(zip(self.keys, values, strict=False)),
            step=next(values)[0],
            scalars=next(values),
            displacement=dict(zip(self._measured, values, strict=True)),
            tensors=tensors,
        )

    def of_factors(self, scalars: Tensor) -> dict[int, Tensor]:
        """(k, parameters) -> (k, count, 1, 1) of the factors of every size."""
        spread = scalars.index_select(1, self._owners)[:, :, None, None]
        pieces = spread.split(self._factor_counts, 1)
        return dict(zip(self.keys, pieces, strict=True))

    def squares(self, values: Mapping[Bucket, Tensor]) -> Tensor:
        """Sums of squares of every parameter, (n,), without gradients."""
        total = torch.zeros(self._count, dtype=self.dtype, device=self.device)
        for bucket, rows in values.items():
            squares = rows.detach().square().sum(1)
            total = total.index_add(0, bucket.owners, squares)
        return total

    def count_on_device(self, records: Sequence[Record], step: Tensor) -> None:
        """Replaces the steps in records by views of `step`, (n,), on the device."""
        self.packed.replace(records, self._step, step.view(1, -1))


def _packing(entries: Sequence[BucketEntry], key: str, pieces: PaddedRows) -> Packing:
    """key: a format with the number of the layout."""
    places = [(entry.parameter, key.format(entry.number)) for entry in entries]
    return Packing(places, pieces.join, pieces.split)
