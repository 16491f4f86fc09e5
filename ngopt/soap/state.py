"""The state of many parameters in a few tensors, of which their records hold views."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.functional import Record, state_dtype
from ngopt.packing import PackedState, Packing, PaddedRows, scalar_packing
from ngopt.roles.buckets import (
    Bucket,
    BucketEntry,
    Factors,
    Layouts,
    Stack,
    arranged,
    entries_of,
    is_measured,
)

# Factors and bases of more rows are bfloat16: rounding is far below their noise.
FLOAT32_ROWS = 512
TINY = 1e-30


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
    """Scalars of the state, by name: (n,) each, or of one parameter ()."""

    scale: Tensor  # unit of gradients, see `GradientScale`
    rms: Tensor  # running, of gradients
    largest: Tensor  # running RMS of gradients so far, bias-corrected
    skipped: Tensor  # gradients that were not finite
    offset: Tensor  # the step size has the factor offset + slope * RMS(weights)
    slope: Tensor
    untrained: Tensor  # from 0, trained and near a minimum, to 1, random weights
    share: Tensor  # factor of the step size of trained weights
    agreement: Tensor  # of the first gradients, 0 to 1
    density: Tensor  # mean share of elements with a gradient, of tables
    invariant: Tensor  # 1 where the scale of the weights has no effect, else 0
    restraint: Tensor  # factor of the step size, at most 1: see `restrained`
    # sums over steps, of parameters with measured entries:
    path: Tensor  # squared steps
    distance: Tensor  # squared, from the initial value
    # inner products of gradient g and direction u, both preconditioned, of a matrix and
    # its bias: g g, g u, u u
    gradient_square: Tensor
    product: Tensor
    direction_square: Tensor


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
    initial["restraint"] = 1.0
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


SUMS = slice(ScalarState._fields.index("path"), len(ScalarState._fields))
"""Rows of `StackedState.scalars` that a step adds to: path, distance and products."""
PRODUCTS = slice(ScalarState._fields.index("gradient_square"), SUMS.stop)


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
                counts = [k.count for k in keys]
                split = partial(torch.split, split_size_or_sections=counts)
                packings.append(Packing(places, torch.cat, split))
        self.step_packing = len(packings)  # index
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
        if in_place and self.packed.made is not None:
            return self.packed.made
        values = iter(tensors)
        state = StackedState(
            momentum=dict(zip(self.buckets, values, strict=False)),
            second=dict(zip(self.buckets, values, strict=False)),
            factors=dict(zip(self.keys, values, strict=False)),
            bases=dict(zip(self.keys, values, strict=False)),
            step=next(values)[0],
            scalars=next(values),
            displacement=dict(zip(self._measured, values, strict=True)),
            tensors=tensors,
        )
        if in_place:
            self.packed.made = state
        return state

    def of_factors(self, scalars: Tensor) -> dict[int, Tensor]:
        """(k, parameters) -> (k, count, 1, 1) of the factors of every size."""
        spread = scalars.index_select(1, self._owners).view(len(scalars), -1, 1, 1)
        pieces = spread.split_with_sizes(self._factor_counts, 1)
        return dict(zip(self.keys, pieces, strict=True))

    def squares(self, values: Mapping[Bucket, Tensor]) -> Tensor:
        """Sums of squares of every parameter, (n,), without gradients."""
        total = torch.zeros(self._count, dtype=self.dtype, device=self.device)
        for bucket, rows in values.items():
            squares = rows.detach().square().sum(1)
            total = total.index_add(0, bucket.owners, squares)
        return total


def _packing(entries: Sequence[BucketEntry], key: str, pieces: PaddedRows) -> Packing:
    """key: a format with the number of the layout."""
    places = [(entry.parameter, key.format(entry.number)) for entry in entries]
    return Packing(places, pieces.join, pieces.split)
