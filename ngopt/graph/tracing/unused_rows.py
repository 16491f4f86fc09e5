"""Rows of a table that the example input does not use, such as later positions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ngopt.graph.groups_and_blocks import ParameterSpec, View, contiguous_strides
from ngopt.graph.tracing.edges import Block


def with_unused_rows(
    specs: Sequence[ParameterSpec], blocks: Sequence[Block]
) -> list[Block]:
    """Blocks whose slots have all rows of a parameter, also the unused ones.

    A longer input would add the other rows of a positional table to the same neurons.
    A parameter that is used in several views stays as it is.
    """
    views = defaultdict(set)
    for block in blocks:
        if block.view is not None:
            views[block.view.parameter].add(block.view)
    found = []
    for block in blocks:
        view = block.view
        # rows of a matrix are neurons, not slots
        is_matrix = max(block.shape[1:], default=1) > 1
        if view is not None and not is_matrix and len(views[view.parameter]) == 1:
            spec = specs[view.parameter]
            axes = len(block.shape)
            whole = _completed(spec, view, axes)
            slots = whole.shape[axes:]
            block = replace(block, view=whole, slot_shape=slots)
        found.append(block)
    return found


def _completed(spec: ParameterSpec, view: View, axes: int) -> View:
    """The view of the whole parameter, with more slots; the view itself without one.

    axes: the number of its dimensions that are those of nodes.
    """
    if view.numel >= spec.numel:
        return view
    for wider in _wider(spec, view, axes):
        if wider.numel == spec.numel == count_elements(wider, spec.numel):
            return wider
    return view


def _wider(spec: ParameterSpec, view: View, axes: int) -> Iterator[View]:
    """Views with all rows along one dimension of the parameter."""
    for size, stride in zip(spec.shape, contiguous_strides(spec.shape), strict=True):
        first = view.offset // stride % size
        offset = view.offset - first * stride
        # of a single row there is no axis yet
        longer = View(
            view.parameter, (*view.shape, size), (*view.strides, stride), offset
        )
        yield longer
        for axis in range(axes, len(view.shape)):
            if view.strides[axis] == stride and view.shape[axis] < size:
                shape = (*view.shape[:axis], size, *view.shape[axis + 1 :])
                yield replace(view, shape=shape, offset=offset)


def count_elements(view: View, numel: int) -> int:
    """How many different elements of a parameter of `numel` a view has."""
    numbers = torch.arange(numel)
    return len(view.read(numbers[None, :, None]).unique())
