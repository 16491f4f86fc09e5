"""Features of parameters on a graph, read part by part: all at once in memory,
or made when read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ngopt.chunking import concatenated
from ngopt.devices import fused
from ngopt.graph.core import GraphValues, NeuralGraph, View
from ngopt.metanets.features import NUM_FEATURES, finite_features
from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk


class FeatureSource(Protocol):
    """What a graph network reads."""

    @property
    def batch(self) -> torch.Size: ...

    def edges(self, parts: BlockTensors, part: EdgeChunk) -> Tensor:
        """Features of a part of a weight, (*batch, groups, n_target, n_source, slots,
        d_in)."""
        ...

    def bias(self, number: int) -> Tensor:
        """Those of a bias, (*batch, n, slots, d_in)."""
        ...


@dataclass(frozen=True)
class WholeValues:
    """Those of `GraphValues`."""

    values: GraphValues
    batch: torch.Size

    def edges(self, parts: BlockTensors, part: EdgeChunk) -> Tensor:
        return part.of(self.values.edges[parts.number])

    def bias(self, number: int) -> Tensor:
        return self.values.biases[number]


@dataclass(frozen=True)
class FlatFeatures:
    """Features of all parameters, one (*batch, numel, d_in) each."""

    values: Sequence[Tensor]
    graph: NeuralGraph
    batch: torch.Size

    @classmethod
    def finite(cls, features: Tensor, graph: NeuralGraph) -> FlatFeatures:
        """Of all features (*batch, numel, d_in); those that are not finite stay where
        they are."""
        finite = features.nan_to_num(0.0, 0.0, 0.0)
        values = finite.split([spec.numel for spec in graph.parameters], -2)
        return cls(values, graph, features.shape[:-2])

    def edges(self, parts: BlockTensors, part: EdgeChunk) -> Tensor:
        assert part.view is not None
        return self._read(part.view, 3, part.is_whole)

    def bias(self, number: int) -> Tensor:
        view = self.graph.biases[number].view
        return self._read(view, 1, view.is_whole(self.graph.parameters[view.parameter]))

    def _read(self, view: View, lead: int, is_whole: bool) -> Tensor:
        value = self.values[view.parameter]
        shape = (
            *self.batch,
            *view.shape[:lead],
            prod(view.shape[lead:]),
            value.shape[-1],
        )
        if not is_whole:
            value = view.read(value.reshape(prod(self.batch), *value.shape[-2:]))
        return value.reshape(shape)


class RawFeatures:
    """Features of parameters of an optimizer, made from weights, gradients and momenta
    when read.

    columns: of every parameter these seven, of its shape; none for what is absent.
    like: of the dtype and on the device of the metanet. Values that are not finite are
    0.
    """

    batch = torch.Size()

    def __init__(
        self,
        columns: Sequence[Sequence[Tensor]],
        graph: NeuralGraph,
        like: Tensor,
    ):
        device = like.device
        self.columns = [[x.reshape(-1).to(device) for x in some] for some in columns]
        self.graph, self.like = graph, like

    def edges(self, parts: BlockTensors, part: EdgeChunk) -> Tensor:
        assert part.view is not None
        return self._read(part.view, 3)

    def bias(self, number: int) -> Tensor:
        return self._read(self.graph.biases[number].view, 1)

    def joined(self, parameters: Sequence[int]) -> list[Tensor]:
        """The columns of some parameters, one after the other: seven (numel,)."""
        rows = zip(*(self.columns[i] for i in parameters), strict=True)
        return [concatenated(row) for row in rows]

    def _read(self, view: View, lead: int) -> Tensor:
        slots = prod(view.shape[lead:])
        shape = (*view.shape[:lead], slots, NUM_FEATURES)
        columns = self.columns[view.parameter]
        if not columns:
            return self.like.new_zeros(shape)
        raw = [_strided(x, view) for x in columns]
        function = fused(finite_features, self.like.device)
        return function(raw, self.like.dtype).reshape(shape)


def _strided(flat: Tensor, view: View) -> Tensor:
    """The elements of a view with as few axes as possible: a fused function is compiled
    again for another number of axes, and for axes of length 1."""
    return flat.as_strided(*_short(view), flat.storage_offset() + view.offset)


@cache
def _short(view: View) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides without axes of length 1, of one axis if all are in one row."""
    pairs = zip(view.shape, view.strides, strict=True)
    axes = [(size, stride) for size, stride in pairs if size != 1]
    dense = 1
    for size, stride in reversed(axes):
        if stride != dense:
            return tuple(size for size, _ in axes), tuple(stride for _, stride in axes)
        dense *= size
    return (prod(view.shape),), (1,)
