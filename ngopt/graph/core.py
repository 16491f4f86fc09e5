"""The neural graph: neuron groups, edge blocks and biases, and the maps between them and parameters.

A neural graph (Kofinas et al. 2024, section 2) has a node for every neuron and an edge for every
weight. It is stored without single edges: a *group* holds the neurons that one layer produces, a
*block* the edges of one parameter tensor from a source group to a target group, and a *bias* the
parameter that is a feature of a group's nodes. Every stored element of every parameter has exactly
one place, so `NeuralGraph.gather` and `NeuralGraph.scatter` are inverse to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterSpec:
    """Name and shape of one parameter; its place in the parameter list is its key."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons that one layer produces: the units of a linear layer, the channels of a convolution.

    `role` is "input", "hidden", "output" or, for neurons without any edge, "isolated". `depth` is
    the length of the longest path to the group over that of the longest path in its component:
    0 at inputs, 1 at the deepest outputs. `transforms` are the parameter-free modules that the
    network applies to these neurons, in order; they are known only to the trace.
    """

    name: str
    size: int
    role: str = "isolated"
    depth: float = 0.0
    transforms: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class Convolution:
    """How a block of edges slides over space (the arguments of `torch.nn.functional.conv2d`)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]


@dataclass(frozen=True)
class EdgeBlock:
    """All edges of one weight: from every neuron of `source` to every neuron of `target`.

    The edge tensor is (n_target, n_source, slots). The slots of an edge are the positions of a
    kernel or, for a linear layer behind a flattened feature map, the positions of that map;
    `slot_shape` is their spatial shape, () for a plain weight matrix.
    """

    parameter: int
    source: int
    target: int
    slot_shape: tuple[int, ...] = ()
    convolution: Convolution | None = None

    @property
    def slots(self) -> int:
        return prod(self.slot_shape)


@dataclass(frozen=True)
class Bias:
    """A parameter with one element for every neuron of `group`: a feature of its nodes."""

    parameter: int
    group: int


class GraphValues(NamedTuple):
    """Values on a graph.

    biases: for every `NeuralGraph.biases`, (*batch, n, *features).
    edges: for every `NeuralGraph.blocks`, (*batch, n_target, n_source, slots, *features).
    """

    biases: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]


@dataclass(frozen=True)
class NeuralGraph:
    """Topology of a network: `groups` of neurons, `blocks` of edges, `biases` on nodes.

    `parameters` lists the parameters in the order in which values are given. Use
    `ngopt.build_graph` to make one.
    """

    parameters: tuple[ParameterSpec, ...]
    groups: tuple[NeuronGroup, ...]
    blocks: tuple[EdgeBlock, ...]
    biases: tuple[Bias, ...]

    @property
    def numel(self) -> int:
        """Number of parameter elements in the graph."""
        return sum(spec.numel for spec in self.parameters)

    def gather(self, values: Sequence[Tensor], batch_dims: int = 0) -> GraphValues:
        """Puts per-parameter values on nodes and edges.

        values: one tensor a parameter, (*batch, *shape, *features), with `batch_dims` leading axes
            that stack equal topologies and any number of trailing feature axes.

        Raises ValueError if the number of values or a shape does not fit.
        """
        self._check(values, batch_dims)
        biases = tuple(self._place(values, b.parameter, self._shape(b), batch_dims) for b in self.biases)
        edges = tuple(self._place(values, b.parameter, self._shape(b), batch_dims) for b in self.blocks)
        return GraphValues(biases, edges)

    def scatter(self, values: GraphValues, batch_dims: int = 0) -> list[Tensor]:
        """Brings values on nodes and edges back to parameters: the inverse of `gather`."""
        places = [*zip(self.biases, values.biases, strict=True), *zip(self.blocks, values.edges, strict=True)]
        by_parameter: dict[int, Tensor] = {}
        for place, value in places:
            batch, features = value.shape[:batch_dims], value.shape[batch_dims + len(self._shape(place)) :]
            shape = self.parameters[place.parameter].shape
            by_parameter[place.parameter] = value.reshape((*batch, *shape, *features))
        return [by_parameter[i] for i in range(len(self.parameters))]

    def flatten(self, values: Sequence[Tensor], batch_dims: int = 0) -> Tensor:
        """Concatenates per-parameter values: (*batch, *shape, *features) each -> (*batch, numel, *features)."""
        flat = [
            v.flatten(batch_dims, batch_dims + len(s.shape) - 1) if s.shape else v.unsqueeze(batch_dims)
            for v, s in zip(values, self.parameters, strict=True)
        ]
        return torch.cat(flat, dim=batch_dims)

    def unflatten(self, flat: Tensor, batch_dims: int = 0) -> list[Tensor]:
        """Views of a flat tensor as per-parameter values: the inverse of `flatten`."""
        pieces = flat.split([spec.numel for spec in self.parameters], dim=batch_dims)
        batch, features = flat.shape[:batch_dims], flat.shape[batch_dims + 1 :]
        return [p.reshape((*batch, *s.shape, *features)) for p, s in zip(pieces, self.parameters, strict=True)]

    def summary(self) -> str:
        """A table of what the graph sees: groups, blocks, parameters and how much of them is connected."""
        from ngopt.graph.views import summary

        return summary(self)

    def _shape(self, place: Bias | EdgeBlock) -> tuple[int, ...]:
        if isinstance(place, Bias):
            return (self.groups[place.group].size,)
        return (self.groups[place.target].size, self.groups[place.source].size, place.slots)

    def _place(self, values: Sequence[Tensor], i: int, shape: tuple[int, ...], batch_dims: int) -> Tensor:
        value, ndim = values[i], batch_dims + len(self.parameters[i].shape)
        return value.reshape((*value.shape[:batch_dims], *shape, *value.shape[ndim:]))

    def _check(self, values: Sequence[Tensor], batch_dims: int) -> None:
        if len(values) != len(self.parameters):
            raise ValueError(f"graph has {len(self.parameters)} parameters; got {len(values)} values")
        for value, spec in zip(values, self.parameters, strict=True):
            shape = tuple(value.shape[batch_dims : batch_dims + len(spec.shape)])
            if shape != spec.shape:
                raise ValueError(
                    f"value of parameter '{spec.name}': expected shape {spec.shape} after {batch_dims} batch "
                    f"dimensions; got {tuple(value.shape)}"
                )
