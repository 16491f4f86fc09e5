"""Packs the tensors of many records into a few, of which the records store views."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import chain, groupby
from math import prod
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, _foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
from torch._C import DisableTorchFunctionSubclass
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.functional import pad

from ngopt.devices import is_capturing, is_transformed
from ngopt.functional import Record

EMPTY = torch.empty(0, 2, device="cpu")
(VIEW,) = _unflatten_dense_tensors(EMPTY.flatten(), [EMPTY])
KEEPS_EMPTY_SHAPES = VIEW.shape == EMPTY.shape
"""torch 2.6 gives views of empty tensors the shape (0,)."""

Shapes = Sequence[tuple[int, ...]]
Values = Mapping[int, Tensor] | Sequence[Tensor]  # by index of a parameter


# By which programs cut the state of points, or append to it.
EDITS_OF_ROWS = "__getitem__", "index_select", "cat", "concat"


class StateView(Tensor):
    """A view of a packed tensor, which a record stores.

    Results are plain tensors. A saved view takes its own bytes, not those of the packed
    tensor. Where a program edits rows, state that has none stays as it is.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__setitem__ and isinstance(args[1], Tensor | list):
            return None  # it might set what is no row
        if function is Tensor.zero_:
            raise ValueError(
                "NGOptimizer: expected eigenbases that are not zero; got zero_() of "
                "state. To start anew, use optimizer.state.pop(parameter)."
            )
        with DisableTorchFunctionSubclass():
            try:
                return function(*args, **kwargs or {})
            except (IndexError, RuntimeError):
                is_one = function is Tensor.__getitem__ and isinstance(args[1], int)
                if function.__name__ not in EDITS_OF_ROWS or is_one:
                    raise
                values = [args[0]] if isinstance(args[0], Tensor) else args[0]
                return next(x for x in values if isinstance(x, cls))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return deepcopy(plain(self), memo)


class ParameterState(dict):
    """A record of an optimizer; saved and copied as torch's unpickler allows."""

    def __missing__(self, key: Any) -> Any:
        raise KeyError(
            f"NGOptimizer: the state of a parameter has no '{key}', but {[*self]}. To "
            "cut or copy rows with their state, use optimizer.select_rows."
        )

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


def plain(value: Any) -> Any:
    """Records and views as torch's own dicts and tensors; other values as they are."""
    if isinstance(value, ParameterState):
        return {key: plain(x) for key, x in value.items()}
    return value.as_subclass(Tensor) if isinstance(value, StateView) else value


class Packing(NamedTuple):
    """A tensor of which records store views.

    places: (number of a record, key) of each view. join: values to tensor. split:
    tensor to views.
    """

    places: Sequence[tuple[int, str]]
    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]

    def put(self, records: Sequence[Record], tensor: Tensor) -> None:
        """Stores views of a tensor in records."""
        views = self.split(tensor)
        for (i, key), view in zip(self.places, views, strict=True):
            records[i][key] = view


class PackedState:
    """The tensors of several packings of the same records."""

    def __init__(
        self, packings: Sequence[Packing], view_type: type[Tensor] = StateView
    ):
        """view_type: of the views that records of an optimizer store."""
        self.packings = packings
        self._view_type = view_type
        self.names: Sequence[str] = ()  # of the records, for errors
        self._places = sorted({place for x in packings for place in x.places})
        self._tensors: list[Tensor] = []
        self._views: list[Tensor] = []  # at these places
        self._stored: list[Tensor] = []  # all values of the records with these views
        self.made: Any = None  # of the tensors in place, by users; dropped with them

    def open(self, records: Sequence[Record], in_place: bool) -> list[Tensor]:
        """The tensors: copies or, in place, tensors of which records store views.

        The views are made once, and again when a record was changed, as by loading. One
        tensor is made after the other, to limit transient memory.
        """
        if not in_place:
            return [self._joined(x, records).clone() for x in self.packings]
        stored = list(chain.from_iterable(map(dict.values, records)))
        known = self._stored  # compared first, as finding keys takes longer
        if len(stored) == len(known) and all(map(is_, stored, known)):
            return self._tensors
        values = [records[i][key] for i, key in self._places]
        if len(values) == len(self._views) and all(map(is_, values, self._views)):
            self._stored = stored
            return self._tensors
        self._check_shapes(values)
        del values, stored, known  # which would keep tensors that views replace
        self._tensors, self._views, self._stored, self.made = [], [], [], None
        for packing in self.packings:
            tensor = self._joined(packing, records)
            packing.put(records, tensor)
            self._tensors.append(tensor)
        self._keep_views(records)
        return self._tensors

    def _keep_views(self, records: Sequence[Record]) -> None:
        for i, key in self._places:
            records[i][key] = records[i][key].as_subclass(self._view_type)
        self._views = [records[i][key] for i, key in self._places]
        self._stored = []

    def _check_shapes(self, values: Sequence[Tensor]) -> None:
        """Raises ValueError if a program has changed the shape of a value."""
        for (i, key), value, view in zip(
            self._places, values, self._views, strict=False
        ):
            if value.shape != view.shape:
                raise ValueError(
                    f"NGOptimizer: '{key}' in the state of '{self.names[i]}': expected "
                    f"shape {tuple(view.shape)}; got {tuple(value.shape)}. Use "
                    "optimizer.select_rows, or start anew with "
                    "optimizer.state.pop(parameter)."
                )

    def close(self, records: Sequence[Record], tensors: Sequence[Tensor]) -> None:
        """Stores copies from `open`, which have changed, in records."""
        for packing, tensor in zip(self.packings, tensors, strict=True):
            packing.put(records, tensor)

    def _joined(self, packing: Packing, records: Sequence[Record]) -> Tensor:
        return packing.join([records[i][key] for i, key in packing.places])

    def replace(self, records: Sequence[Record], number: int, tensor: Tensor) -> None:
        """Replaces the tensor of one packing, opened in place."""
        self.packings[number].put(records, tensor)
        self._tensors[number], self.made = tensor, None
        self._keep_views(records)


class _Matrices(NamedTuple):
    """A value of `PaddedRows`."""

    count: int  # of matrices
    size: int  # elements of a matrix
    gap: int  # zeros after each matrix
    view: tuple[int, ...]  # shape of the view of `split`
    place: int  # among the parts of the flat bucket
    is_cut: bool  # has a gap after each of several matrices, or no elements


class PaddedRows:
    """Packs matrices into rows of equal length, (rows, lanes).

    Each matrix starts with a row; zeros fill its last row.

    Attributes:
        rows: number of rows of each value. has_gaps: whether there are such zeros.
    """

    def __init__(self, shapes: Shapes, lanes: int, views: Shapes | None = None):
        """shapes: (matrices, *matrix) of each value. views: shapes of the views of
        `split`, with as many elements; None: `shapes`."""
        self.lanes = lanes
        self.rows: list[int] = []
        self._values: list[_Matrices] = []
        parts: list[tuple[int, ...]] = []  # shapes of values and gaps
        for shape, view in zip(shapes, views or shapes, strict=True):
            count = shape[0] if shape else 1
            size = prod(shape[1:])
            gap = -size % lanes
            self.rows.append(count * (size + gap) // lanes)
            is_cut = not prod(view) or (gap > 0 and count > 1)
            value = _Matrices(count, size, gap, view, len(parts), is_cut)
            self._values.append(value)
            if is_cut:
                parts.append((count, size + gap))
            else:
                parts += [view, (gap,)] if gap else [view]
        self.has_gaps = any(value.gap for value in self._values)
        self._parts = list(map(torch.empty((), device="cpu").expand, parts))
        self._zeros: dict[Any, list[Tensor]] = {}  # gaps, by dtype and device

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """Values -> (rows, lanes); may be a view."""
        if self.has_gaps:  # zeros after values that do not fill their rows
            like = values[0]
            key = like.dtype, like.device
            if key not in self._zeros:
                zeros = torch.zeros(self.lanes, dtype=like.dtype, device=like.device)
                self._zeros[key] = [zeros[: value.gap] for value in self._values]
            padded = []
            for x, value, gap in zip(
                values, self._values, self._zeros[key], strict=True
            ):
                if value.is_cut:
                    padded.append(pad(x.reshape(value.count, -1), (0, value.gap)))
                else:
                    padded += [x, gap] if value.gap else [x]
            values = padded
        if not all(x.is_contiguous() for x in values):
            values = _contiguous(values)
        return flatten(values).view(-1, self.lanes)

    def split(self, bucket: Tensor) -> list[Tensor]:
        """The inverse of `join`; views, unless `views` join matrices across gaps."""
        parts = unflatten(bucket.reshape(-1), self._parts)
        views = []
        for count, size, _, view, place, is_cut in self._values:
            part = parts[place]
            if is_cut:
                # a view of `shapes` always; not if `views` joins matrices across gaps
                part = part.view(count, -1)[:, :size].reshape(view)
            views.append(part)
        return views


def flatten(values: Sequence[Tensor]) -> Tensor:
    """All elements, concatenated, (n,); may be a view."""
    if is_transformed():  # vmap has no rule for the faster ones
        return torch.cat([x.reshape(-1) for x in values])
    is_simple = len(values) == 1 or not values[0].is_cuda or torch.is_grad_enabled()
    if is_simple or len({x.dtype for x in values}) > 1:
        return _flatten_dense_tensors(values)
    return _copied(values)


def _copied(values: Sequence[Tensor]) -> Tensor:
    """As `flatten`, for values of one dtype on a GPU.

    There `cat` takes as long for each tensor as for the largest.
    """
    flat = values[0].new_empty(sum(x.numel() for x in values))
    _foreach_copy_([*unflatten(flat, values)], [*values])
    return flat


def unflatten(values: Tensor, likes: Sequence[Tensor]) -> Sequence[Tensor]:
    """The inverse of `flatten`: views in the shapes of `likes`."""
    if is_transformed():
        parts = values.split(list(map(Tensor.numel, likes)))
    else:
        parts = _unflatten_dense_tensors(values, likes)
        if KEEPS_EMPTY_SHAPES:
            return parts
    return list(map(Tensor.view_as, parts, likes))


def _contiguous(values: Sequence[Tensor]) -> list[Tensor]:
    """The same elements; successive values of one shape are copied in one call."""
    result: list[Tensor] = []
    for _, same_shape in groupby(values, lambda x: x.shape):
        run = list(same_shape)
        if not all(x.is_contiguous() for x in run):
            run = [torch.cat(run)]
        result += run
    return result


def scalar_packing(count: int, keys: Sequence[str], device: torch.device) -> Packing:
    """Packs scalars of `count` records into a tensor (keys, count) on a device.

    Values that were loaded, or counted by a CUDA graph, may be on another device.
    """

    def join(values: list[Tensor]) -> Tensor:
        # a CUDA graph cannot contain copies to the host
        if not any(map(is_capturing, {x.device for x in values})):
            values = [x.to(device) for x in values]
        return torch.stack(values).view(len(keys), count)

    places = [(i, key) for key in keys for i in range(count)]
    return Packing(places, join, lambda tensor: tensor.flatten().unbind())


def clone_views(records: Iterable[Record]) -> None:
    """Replaces views by copies, as each view keeps the whole tensor alive."""
    for record in records:
        for key, value in record.items():
            if value.untyped_storage().nbytes() > value.numel() * value.itemsize:
                record[key] = value.clone()
