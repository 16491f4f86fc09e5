"""The neural graph: neuron groups, edge blocks and biases,
and the maps between them and parameters.

A neural graph (Kofinas et al. 2024, section 2) has a node for every neuron and an edge
for every weight. It is stored without single edges: a *group* holds the neurons that
one layer produces, a
*block* the edges of one piece of a parameter from a source group to a target group, and
a *bias* a piece that is a feature of a group's nodes. Every stored element of every
parameter has a place, and `NeuralGraph.gather` and `NeuralGraph.scatter` are inverse to
each other; where a network uses a parameter more than once, each use is a place, and
scatter averages over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import (
    ParameterSpec,
    Topology,
    View,
)
from ngopt.graph.summary import summary


class GraphValues(NamedTuple):
    """Values on a graph.

    biases: for every `NeuralGraph.biases`, (*batch, n, slots, *features).
    edges: for every `NeuralGraph.weights`, (*batch, groups, n_target, n_source, slots,
    *features).
    """

    biases: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]


@dataclass(frozen=True)
class NeuralGraph(Topology):
    """Topology of a network, and the way of values between its parameters and its nodes
    and edges.

    Use `ngopt.build_graph` to make a graph.
    """

    def gather(self, values: Sequence[Tensor], batch_dims: int = 0) -> GraphValues:
        """Puts per-parameter values on nodes and edges.

        values: one tensor a parameter, (*batch, *shape, *features), with `batch_dims`
        leading axes
            that stack equal topologies and any number of trailing feature axes. Those
            of a complex parameter may be complex, or real pairs.

        Raises ValueError if the number of values or a shape does not fit.
        """
        if len(values) != len(self.parameters):
            raise ValueError(
                f"graph has {len(self.parameters)} parameters; got {len(values)} values"
            )
        values = [
            torch.view_as_real(v) if spec.is_complex and v.is_complex() else v
            for v, spec in zip(values, self.parameters, strict=True)
        ]
        self._check(values, batch_dims)
        return GraphValues(
            tuple(self._read(values, bias.view, 1, batch_dims) for bias in self.biases),
            tuple(
                self._read(values, block.view, 3, batch_dims)
                for block in self.weights
                if block.view
            ),
        )

    def scatter(self, values: GraphValues, batch_dims: int = 0) -> list[Tensor]:
        """Brings values on nodes and edges back to parameters: the inverse of `gather`.

        Where an element has several places, its value is their mean. Real pairs without
        feature axes come back as complex numbers, if there are any of their dtype.
        """
        found: list[list[tuple[View, Tensor]]] = [[] for _ in self.parameters]
        for places, tensors, lead in (
            (self.biases, values.biases, 1),
            (self.weights, values.edges, 3),
        ):
            for place, tensor in zip(places, tensors, strict=True):
                view = place.view
                assert view is not None
                features = tensor.shape[batch_dims + lead + 1 :]
                value = tensor.reshape(
                    (*tensor.shape[:batch_dims], *view.shape, *features)
                )
                found[view.parameter].append((view, value))
        return [
            _assemble(spec, uses, numbers, batch_dims)
            for spec, uses, numbers in zip(
                self.parameters, found, self._use_numbers, strict=True
            )
        ]

    def flatten(self, values: Sequence[Tensor], batch_dims: int = 0) -> Tensor:
        """Concatenates per-parameter values: (*batch, *shape, *features) each ->
        (*batch, numel, *features)."""
        flat = [
            v.flatten(batch_dims, batch_dims + len(s.shape) - 1)
            if s.shape
            else v.unsqueeze(batch_dims)
            for v, s in zip(values, self.parameters, strict=True)
        ]
        return torch.cat(flat, dim=batch_dims)

    def unflatten(self, flat: Tensor, batch_dims: int = 0) -> list[Tensor]:
        """Views of a flat tensor as per-parameter values: the inverse of `flatten`."""
        pieces = flat.split([spec.numel for spec in self.parameters], dim=batch_dims)
        batch = flat.shape[:batch_dims]
        features = flat.shape[batch_dims + 1 :]
        return [
            p.reshape((*batch, *s.shape, *features))
            for p, s in zip(pieces, self.parameters, strict=True)
        ]

    def summary(self) -> str:
        """A table of what the graph sees: groups, blocks,
        parameters and how much of them is connected."""
        return summary(self)

    @cached_property
    def _use_numbers(self) -> tuple[UseNumbers, ...]:
        """For every parameter the numbers of its uses,
        in the order in which `scatter` finds them."""
        views: list[list[View]] = [[] for _ in self.parameters]
        for place in (*self.biases, *self.weights):
            assert place.view is not None
            views[place.view.parameter].append(place.view)
        return tuple(
            _number_uses(spec, v)
            for spec, v in zip(self.parameters, views, strict=True)
        )

    def _read(
        self, values: Sequence[Tensor], view: View, lead: int, batch_dims: int
    ) -> Tensor:
        """A parameter's values in the order of a view,
        its trailing dimensions flattened to slots."""
        value = values[view.parameter]
        spec = self.parameters[view.parameter]
        batch = value.shape[:batch_dims]
        features = value.shape[batch_dims + len(spec.shape) :]
        shape = (*batch, *view.shape[:lead], prod(view.shape[lead:]), *features)
        if view.is_whole(spec):
            return value.reshape(shape)
        return view.read(
            value.reshape(prod(batch), spec.numel, prod(features))
        ).reshape(shape)

    def _check(self, values: Sequence[Tensor], batch_dims: int) -> None:
        for value, spec in zip(values, self.parameters, strict=True):
            shape = tuple(value.shape[batch_dims : batch_dims + len(spec.shape)])
            if shape != spec.shape:
                raise ValueError(
                    f"value of parameter '{spec.name}': expected shape {spec.shape} after "
                    f"{batch_dims} batch "
                    f"dimensions; got {tuple(value.shape)}"
                )


UseNumbers = tuple[int | np.ndarray, ...]
"""For each view of a parameter which use of its elements it is, from 1; (*shape, 1)
where they have different ones."""


def _number_uses(spec: ParameterSpec, views: Sequence[View]) -> UseNumbers:
    if len(views) == 1:
        return (1,)
    # no tensor: what is kept must not depend on the mode it was made in
    times = np.zeros(spec.numel, np.int32)
    found = []
    for view in views:
        strides = [s * times.itemsize for s in view.strides]
        places = np.lib.stride_tricks.as_strided(
            times[view.offset :], view.shape, strides
        )
        places += 1
        numbers = np.unique(places)
        found.append(int(numbers[0]) if len(numbers) == 1 else places[..., None].copy())
    return tuple(found)


def _assemble(
    spec: ParameterSpec,
    uses: Sequence[tuple[View, Tensor]],
    numbers: UseNumbers,
    batch_dims: int,
) -> Tensor:
    """A parameter's values from those of its places, (*batch, *view.shape, *features)
    each."""
    view, value = uses[0]
    batch = value.shape[:batch_dims]
    features = value.shape[batch_dims + len(view.shape) :]
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
    """The mean of `number` values from that of the first `number` - 1 and the last;
    equal ones give themselves."""
    k = (
        number
        if isinstance(number, int)
        else torch.as_tensor(number, device=value.device)
    )
    exact = value.is_floating_point() or value.is_complex()
    mean = old + ((value - old) / k if exact else (value - old) // k)
    return mean if isinstance(k, int) else torch.where(k == 1, value, mean)


def _as_declared(spec: ParameterSpec, value: Tensor, has_features: bool) -> Tensor:
    """Complex numbers where the parameter's are, unless there are none of such pairs:
    of integers, say."""
    pairs = (
        spec.is_complex
        and not has_features
        and value.dtype in (torch.float16, torch.float32, torch.float64)
    )
    return torch.view_as_complex(value.contiguous()) if pairs else value
