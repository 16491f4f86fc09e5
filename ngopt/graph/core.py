"""The neural graph: neuron groups, edge blocks and biases, and the maps between them and parameters.

A neural graph (Kofinas et al. 2024, section 2) has a node for every neuron and an edge for every
weight. It is stored without single edges: a *group* holds the neurons that one layer produces, a
*block* the edges of one piece of a parameter from a source group to a target group, and a *bias* a
piece that is a feature of a group's nodes. Every stored element of every parameter has a place, and
`NeuralGraph.gather` and `NeuralGraph.scatter` are inverse to each other; where a network uses a
parameter more than once, each use is a place, and scatter averages over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BIAS_KINDS = ("bias", "recurrent", "gamma", "beta", "slope", "scale", "shift", "value", "other")
"""What a parameter does to neurons, one by one.

The bias of a layer, that of a recurrent layer's own state; scale and shift of a norm; slope of an activation; a bare
parameter times or plus activations, or in their place (a class token, a state that a recurrent layer begins with; the
hidden one of an LSTM is "recurrent").
"""
EDGE_KINDS = (
    "weight", "flatten", "residual", "left", "right", "pool", "spread", "copy", *BIAS_KINDS,
)  # fmt: skip
"""What edges mean.

Weights, those of a flattened feature map; and of value 1: a sum, or the state that a recurrent layer begins with (the
hidden one of an LSTM is "recurrent"); the two sides of a product, or of a sum or difference that is a node of its own;
into and out of a node that stands for several; to a node that stands for the same neuron seen in another way. A scale
that every neuron has of its own is edges from one to one, and in a parameter graph all of `BIAS_KINDS` are edges.
"""
NODE_KINDS = (
    "neuron", "token", "product", "head", "group", "pool", "position", "copy", "parameter", "constant", *BIAS_KINDS,
)  # fmt: skip
"""What nodes are: see `NeuronGroup.kind`; in a parameter graph also parameters, by what they do."""


@dataclass(frozen=True)
class ParameterSpec:
    """Name and shape of one parameter; its place in the parameter list is its key.

    In a graph a complex parameter counts as pairs of real numbers, on a last axis of its shape.
    """

    name: str
    shape: tuple[int, ...]
    is_complex: bool = False

    @classmethod
    def of(cls, name: str, parameter: Tensor) -> ParameterSpec:
        """The spec of a tensor, complex numbers still counted as one."""
        return cls(name, tuple(parameter.shape), parameter.is_complex())

    @property
    def paired(self) -> ParameterSpec:
        """The same with complex numbers counted as two."""
        return ParameterSpec(self.name, (*self.shape, 2), True) if self.is_complex else self

    @property
    def unpaired(self) -> ParameterSpec:
        """The inverse of `paired`."""
        return ParameterSpec(self.name, self.shape[:-1], True) if self.is_complex else self

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class View:
    """Which elements of a parameter lie where: a strided view of its flat elements, none of them twice."""

    parameter: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        # the stride of a dimension of length 1 says nothing; with 0, views of the same elements are equal
        strides = tuple(s if n > 1 else 0 for s, n in zip(self.strides, self.shape, strict=True))
        object.__setattr__(self, "strides", strides)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def is_whole(self, spec: ParameterSpec) -> bool:
        """Whether the view is the parameter in its own order."""
        return self == View(self.parameter, self.shape, contiguous_strides(self.shape)) and self.numel == spec.numel

    def read(self, flat: Tensor) -> Tensor:
        """(b, numel, f) -> (b, *shape, f)."""
        return self._of(flat)

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Puts (b, *shape, f) into (b, numel, f), in place."""
        self._of(flat).copy_(values)

    def _of(self, flat: Tensor) -> Tensor:
        tail = flat[:, self.offset :]
        batch, element, feature = flat.stride()
        strides = (batch, *(s * element for s in self.strides), feature)
        return tail.as_strided((len(flat), *self.shape, flat.shape[-1]), strides)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons that one layer produces: the units of a linear layer, the channels of a convolution.

    `kind` is "neuron", or says what other thing the nodes are: "token" (rows of a table), "product",
    "head" of an attention, "group" of a GroupNorm, "position", "pool" (many neurons reduced to one),
    "copy" (neurons that a second weight sees in another way), "parameter" (shared by many neurons),
    "constant". `role` is "input", "hidden",
    "output" or, for nodes without any edge, "isolated". `depth` is the length of the longest path
    to the group over that of the longest path in its component: 0 at inputs, 1 at the deepest
    outputs. `activation` is the name of the function that the network applies to these neurons.
    """

    name: str
    size: int
    kind: str = "neuron"
    role: str = "isolated"
    depth: float = 0.0
    activation: str | None = None


def kind_code(kind: str, kinds: Sequence[str]) -> int:
    """Place of a kind among all; the last of them, "other", stands for those of someone's own rules."""
    return kinds.index(kind) if kind in kinds else len(kinds) - 1


Index = tuple[int, ...] | None
"""Neurons of a group, in the order in which a block or bias has them; None for all of them."""


@dataclass(frozen=True)
class EdgeBlock:
    """Edges from neurons of `source` to neurons of `target`, all alike in what they mean.

    The edge tensor is (groups, n_target, n_source, slots): every target of a group is connected to
    every source of the same group. A dense layer has one group, a grouped convolution several, and
    a diagonal (the scale of a norm) as many as neurons. Counted through all groups, the targets
    are the neurons `target_index`, the sources `source_index`.

    The slots of an edge are the positions of a kernel, of a flattened feature map, the gates of a
    recurrent layer; `slot_shape` is their shape, () for one. `view` says which elements these are,
    with the shape (groups, n_target, n_source, *slot_shape); None for the edges of value 1 of a
    residual connection and the like. `kind` tells edges of different meaning apart. In a parameter
    graph, where each slot is a block, `position` is the place of that slot in its kernel.
    """

    view: View | None
    source: int
    target: int
    shape: tuple[int, int, int]
    slot_shape: tuple[int, ...] = ()
    kind: str = "weight"
    source_index: Index = None
    target_index: Index = None
    position: tuple[int, ...] = ()

    @property
    def slots(self) -> int:
        return prod(self.slot_shape)


@dataclass(frozen=True)
class Bias:
    """A piece of a parameter that is a feature of nodes: `view` has the shape (n, *slot_shape)."""

    view: View
    group: int
    slot_shape: tuple[int, ...] = ()
    kind: str = "bias"
    index: Index = None


class GraphValues(NamedTuple):
    """Values on a graph.

    biases: for every `NeuralGraph.biases`, (*batch, n, slots, *features).
    edges: for every `NeuralGraph.weights`, (*batch, groups, n_target, n_source, slots, *features).
    """

    biases: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]


@dataclass(frozen=True)
class NeuralGraph:
    """Topology of a network: `groups` of neurons, `blocks` of edges, `biases` on nodes.

    `parameters` lists the parameters in the order in which values are given; the blocks in
    `constants` belong to none. `unplaced` names the parameters for which no rule was found, each a
    component of its own. `members` says for each group which of several joined graphs it is of; ()
    where there is one. `inferred` says for each parameter whether it is where its name and shape
    put it, () where none is. Use `ngopt.build_graph` to make a graph.
    """

    parameters: tuple[ParameterSpec, ...]
    groups: tuple[NeuronGroup, ...]
    blocks: tuple[EdgeBlock, ...]
    biases: tuple[Bias, ...]
    unplaced: tuple[str, ...] = ()
    members: tuple[int, ...] = ()
    inferred: tuple[bool, ...] = field(default=(), compare=False)

    def blocks_into(self, group: int) -> tuple[EdgeBlock, ...]:
        """The blocks whose target is a group."""
        return self._incoming.get(group, ())

    @cached_property
    def _incoming(self) -> dict[int, tuple[EdgeBlock, ...]]:
        found: dict[int, list[EdgeBlock]] = {}
        for block in self.blocks:
            found.setdefault(block.target, []).append(block)
        return {group: tuple(blocks) for group, blocks in found.items()}

    @property
    def numel(self) -> int:
        """Number of parameter elements in the graph."""
        return sum(spec.numel for spec in self.parameters)

    @cached_property
    def weights(self) -> tuple[EdgeBlock, ...]:
        """The blocks whose edges are parameters."""
        return tuple(block for block in self.blocks if block.view is not None)

    @cached_property
    def constants(self) -> tuple[EdgeBlock, ...]:
        """The blocks whose edges have the value 1."""
        return tuple(block for block in self.blocks if block.view is None)

    @property
    def membership(self) -> tuple[int, ...]:
        """Of each group, which of several joined graphs it is of."""
        return self.members or (0,) * len(self.groups)

    def gather(self, values: Sequence[Tensor], batch_dims: int = 0) -> GraphValues:
        """Puts per-parameter values on nodes and edges.

        values: one tensor a parameter, (*batch, *shape, *features), with `batch_dims` leading axes
            that stack equal topologies and any number of trailing feature axes. Those of a
            complex parameter may be complex, or real pairs.

        Raises ValueError if the number of values or a shape does not fit.
        """
        if len(values) != len(self.parameters):
            raise ValueError(f"graph has {len(self.parameters)} parameters; got {len(values)} values")
        values = [
            torch.view_as_real(v) if spec.is_complex and v.is_complex() else v
            for v, spec in zip(values, self.parameters, strict=True)
        ]
        self._check(values, batch_dims)
        return GraphValues(
            tuple(self._read(values, bias.view, 1, batch_dims) for bias in self.biases),
            tuple(self._read(values, block.view, 3, batch_dims) for block in self.weights if block.view),
        )

    def scatter(self, values: GraphValues, batch_dims: int = 0) -> list[Tensor]:
        """Brings values on nodes and edges back to parameters: the inverse of `gather`.

        Where an element has several places, its value is their mean. Real pairs without feature
        axes come back as complex numbers, if there are any of their dtype.
        """
        found: list[list[tuple[View, Tensor]]] = [[] for _ in self.parameters]
        for places, tensors, lead in ((self.biases, values.biases, 1), (self.weights, values.edges, 3)):
            for place, tensor in zip(places, tensors, strict=True):
                view = place.view
                assert view is not None
                features = tensor.shape[batch_dims + lead + 1 :]
                value = tensor.reshape((*tensor.shape[:batch_dims], *view.shape, *features))
                found[view.parameter].append((view, value))
        return [
            _assemble(spec, uses, numbers, batch_dims)
            for spec, uses, numbers in zip(self.parameters, found, self._use_numbers, strict=True)
        ]

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

    @cached_property
    def _use_numbers(self) -> tuple[UseNumbers, ...]:
        """For every parameter the numbers of its uses, in the order in which `scatter` finds them."""
        views: list[list[View]] = [[] for _ in self.parameters]
        for place in (*self.biases, *self.weights):
            assert place.view is not None
            views[place.view.parameter].append(place.view)
        return tuple(_number_uses(spec, v) for spec, v in zip(self.parameters, views, strict=True))

    def _read(self, values: Sequence[Tensor], view: View, lead: int, batch_dims: int) -> Tensor:
        """A parameter's values in the order of a view, its trailing dimensions flattened to slots."""
        value, spec = values[view.parameter], self.parameters[view.parameter]
        batch = value.shape[:batch_dims]
        features = value.shape[batch_dims + len(spec.shape) :]
        shape = (*batch, *view.shape[:lead], prod(view.shape[lead:]), *features)
        if view.is_whole(spec):
            return value.reshape(shape)
        return view.read(value.reshape(prod(batch), spec.numel, prod(features))).reshape(shape)

    def _check(self, values: Sequence[Tensor], batch_dims: int) -> None:
        for value, spec in zip(values, self.parameters, strict=True):
            shape = tuple(value.shape[batch_dims : batch_dims + len(spec.shape)])
            if shape != spec.shape:
                raise ValueError(
                    f"value of parameter '{spec.name}': expected shape {spec.shape} after {batch_dims} batch "
                    f"dimensions; got {tuple(value.shape)}"
                )


UseNumbers = tuple[int | np.ndarray, ...]
"""For each view of a parameter which use of its elements it is, from 1; (*shape, 1) where they have different ones."""


def _number_uses(spec: ParameterSpec, views: Sequence[View]) -> UseNumbers:
    if len(views) == 1:
        return (1,)
    times = np.zeros(spec.numel, np.int32)  # no tensor: what is kept must not depend on the mode it was made in
    found = []
    for view in views:
        strides = [s * times.itemsize for s in view.strides]
        places = np.lib.stride_tricks.as_strided(times[view.offset :], view.shape, strides)
        places += 1
        numbers = np.unique(places)
        found.append(int(numbers[0]) if len(numbers) == 1 else places[..., None].copy())
    return tuple(found)


def _assemble(spec: ParameterSpec, uses: Sequence[tuple[View, Tensor]], numbers: UseNumbers, batch_dims: int) -> Tensor:
    """A parameter's values from those of its places, (*batch, *view.shape, *features) each."""
    view, value = uses[0]
    batch, features = value.shape[:batch_dims], value.shape[batch_dims + len(view.shape) :]
    shape = (*batch, *spec.shape, *features)
    if len(uses) == 1 and view.is_whole(spec):
        return _as_declared(spec, value.reshape(shape), bool(features))
    mean = value.new_zeros(prod(batch), spec.numel, prod(features))
    for (view, value), number in zip(uses, numbers, strict=True):
        value = value.reshape(prod(batch), *view.shape, prod(features))
        if not (isinstance(number, int) and number == 1):
            value = _running_mean(view.read(mean), value, number)
            mean = mean.clone()  # autograd needs what was read
        view.write(mean, value)
    return _as_declared(spec, mean.reshape(shape), bool(features))


def _running_mean(old: Tensor, value: Tensor, number: int | np.ndarray) -> Tensor:
    """The mean of `number` values from that of the first `number` - 1 and the last; equal ones give themselves."""
    k = number if isinstance(number, int) else torch.as_tensor(number, device=value.device)
    exact = value.is_floating_point() or value.is_complex()
    mean = old + ((value - old) / k if exact else (value - old) // k)
    return mean if isinstance(k, int) else torch.where(k == 1, value, mean)


def _as_declared(spec: ParameterSpec, value: Tensor, has_features: bool) -> Tensor:
    """Complex numbers where the parameter's are, unless there are none of such pairs: of integers, say."""
    pairs = spec.is_complex and not has_features and value.dtype in (torch.float16, torch.float32, torch.float64)
    return torch.view_as_complex(value.contiguous()) if pairs else value
