"""Features of a graph's parameters, read chunk by chunk: all in memory, or computed
when read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ngopt.chunking import concatenated
from ngopt.devices import fused
from ngopt.graph.groups_and_blocks import View, contiguous_strides
from ngopt.graph.neural_graph import GraphValues, NeuralGraph
from ngopt.metanets.features import NUM_FEATURES, finite_features
from ngopt.metanets.graph_data.graph_tensors import EdgeChunk


class FeatureSource(Protocol):
    """The input of a graph network."""

    @property
    def batch(self) -> torch.Size: ...

    def edges(self, chunk: EdgeChunk) -> Tensor:
        """Features of a chunk of a weight, (*batch, groups, n_target, n_source, slots,
        d_in)."""
        ...

    def bias(self, number: int) -> Tensor:
        """Features of a bias, (*batch, n, slots, d_in)."""
        ...


class ParameterSource(ABC):
    """A `FeatureSource` that reads views of the parameters of a graph."""

    graph: NeuralGraph

    def edges(self, chunk: EdgeChunk) -> Tensor:
        assert chunk.view is not None
        return self._read(chunk.view, 3)

    def bias(self, number: int) -> Tensor:
        return self._read(self.graph.biases[number].view, 1)

    @abstractmethod
    def _read(self, view: View, lead: int) -> Tensor:
        """lead: axes of the view that are not slots."""


@dataclass(frozen=True)
class WholeValues:
    """Features that are `GraphValues`."""

    values: GraphValues
    batch: torch.Size

    def edges(self, chunk: EdgeChunk) -> Tensor:
        return chunk.of(self.values.edges[chunk.block])

    def bias(self, number: int) -> Tensor:
        return self.values.biases[number]


@dataclass(frozen=True)
class FlatFeatures(ParameterSource):
    """Features of every parameter, (*batch, numel, d_in) each."""

    values: Sequence[Tensor]
    graph: NeuralGraph
    batch: torch.Size

    @classmethod
    def finite(cls, features: Tensor, graph: NeuralGraph) -> "FlatFeatures":
        """Of all features (*batch, numel, d_in), with 0 where they are not finite."""
        finite = features.nan_to_num(0.0, 0.0, 0.0)
        values = finite.split([spec.numel for spec in graph.parameters], -2)
        return cls(values, graph, features.shape[:-2])

    def _read(self, view: View, lead: int) -> Tensor:
        value = self.values[view.parameter]
        slots = prod(view.shape[lead:])
        shape = (*self.batch, *view.shape[:lead], slots, value.shape[-1])
        if not view.is_whole(self.graph.parameters[view.parameter]):
            value = value.reshape(prod(self.batch), *value.shape[-2:])
            value = view.read(value)
        return value.reshape(shape)


class RawFeatures(ParameterSource):
    """Features computed from weights, gradients and momenta when read; 0 where they are
    not finite.

    columns: for every parameter seven tensors of its shape (weight, gradient and five
    momenta), or [] without a gradient. like: of the metanet's dtype, on its device.
    """

    batch = torch.Size()

    def __init__(
        self, columns: Sequence[Sequence[Tensor]], graph: NeuralGraph, like: Tensor
    ):
        device = like.device
        self.columns = [[x.reshape(-1).to(device) for x in row] for row in columns]
        self.graph = graph
        self.like = like

    def joined(self, parameters: Sequence[int]) -> list[Tensor]:
        """Columns of some parameters, one after the other: seven (numel,)."""
        columns = zip(*(self.columns[i] for i in parameters), strict=True)
        return list(map(concatenated, columns))

    def _read(self, view: View, lead: int) -> Tensor:
        shape = (*view.shape[:lead], prod(view.shape[lead:]), NUM_FEATURES)
        columns = self.columns[view.parameter]
        if not columns:
            return self.like.new_zeros(shape)
        # as few axes as possible: a fused function is compiled again for another number
        # of axes, and for axes of length 1
        sizes, strides = _squeezed(view)
        raw = []
        for x in columns:
            raw.append(x.as_strided(sizes, strides, x.storage_offset() + view.offset))
        function = fused(finite_features, self.like.device)
        return function(raw, self.like.dtype).reshape(shape)


@cache
def _squeezed(view: View) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides without axes of length 1; one axis if all are in one row."""
    shape, strides = [], []
    for size, stride in zip(view.shape, view.strides, strict=True):
        if size != 1:
            shape.append(size)
            strides.append(stride)
    if tuple(strides) == contiguous_strides(tuple(shape)):
        return (prod(shape),), (1,)
    return tuple(shape), tuple(strides)
