"""The neural graph, and the maps between parameters and the graph's nodes and edges.

A neural graph (Kofinas et al. 2024, section 2) has a node for every neuron and an edge
for every weight. It is stored in pieces: a *group* holds the neurons of one layer, a
*block* the edges of one piece of a parameter from a source group to a target group, and
a *bias* a piece of a parameter that is a feature of a group's nodes. Every element of
every parameter has a place. Where a network uses a parameter more than once, each use
has a place. `NeuralGraph.gather` and `NeuralGraph.scatter` are inverse to each other;
scatter averages over the uses of an element.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from ngopt.graph.groups_and_blocks import ParameterSpec, Topology, View
from ngopt.graph.summary import summary

# Axes of values before their slots: (n, slots), (groups, n_target, n_source, slots).
NODE_DIMS = 1
EDGE_DIMS = 3


class GraphValues(NamedTuple):
    """Values on a graph.

    Attributes:
        biases: For every bias in `NeuralGraph.biases`, `(*batch, n, slots, *features)`.
        edges: For every block in `NeuralGraph.weights`, `(*batch, groups, n_target,
            n_source, slots, *features)`.
    """

    biases: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]


UseNumber = int | np.ndarray
"""Number of a use among those of the same elements, from 1; (*view.shape, 1) where it
differs between elements."""


@dataclass(frozen=True)
class NeuralGraph(Topology):
    """Topology of a network, and the maps of values between its parameters and its
    nodes and edges. `ngopt.build_graph` makes one."""

    def gather(
        self, values: Sequence[Tensor] | Mapping[str, Tensor], batch_dims: int = 0
    ) -> GraphValues:
        """Puts per-parameter values on nodes and edges.

        Args:
            values: One tensor per parameter, `(*batch, *shape, *features)`, in order or
                by name as in a `state_dict`. The first `batch_dims` axes stack networks
                of this topology. Values of a complex parameter are complex or real
                pairs.

        Raises:
            ValueError: If the number of values or a shape does not fit, or if a name is
                missing.
        """
        real = self.as_real(values, batch_dims)
        node_views = [bias.view for bias in self.biases]
        edge_views = [block.elements for block in self.weights]
        return GraphValues(
            tuple(self._read(real, view, NODE_DIMS, batch_dims) for view in node_views),
            tuple(self._read(real, view, EDGE_DIMS, batch_dims) for view in edge_views),
        )

    def as_real(
        self, values: Sequence[Tensor] | Mapping[str, Tensor], batch_dims: int = 0
    ) -> list[Tensor]:
        """Values with real pairs for complex numbers. Raises ValueError as `gather`."""
        if isinstance(values, Mapping):
            missing = [p.name for p in self.parameters if p.name not in values]
            if missing:
                raise ValueError(
                    "NeuralGraph: expected a value for every parameter; got none for "
                    f"{', '.join(missing)}"
                )
            values = [values[p.name] for p in self.parameters]
        if not isinstance(values, Sequence):
            raise ValueError(
                "NeuralGraph: expected a list of tensors, or tensors by name; got "
                f"{type(values).__name__}. Pass dict(model.named_parameters())."
            )
        if len(values) != len(self.parameters):
            raise ValueError(
                f"NeuralGraph: expected {len(self.parameters)} values, one per "
                f"parameter; got {len(values)}"
            )
        real = []
        for value, spec in zip(values, self.parameters, strict=True):
            if spec.is_complex and value.is_complex():
                value = torch.view_as_real(value)
            shape = tuple(value.shape[batch_dims : batch_dims + len(spec.shape)])
            if shape != spec.shape:
                raise ValueError(
                    f"NeuralGraph: expected shape {spec.shape} after {batch_dims} "
                    f"batch dimensions; got {tuple(value.shape)} (value of parameter "
                    f"'{spec.name}'). batch_dims is the number of axes that stack "
                    "networks."
                )
            real.append(value)
        return real

    def scatter(self, values: GraphValues, batch_dims: int = 0) -> list[Tensor]:
        """Brings values on nodes and edges back to parameters: the inverse of `gather`.

        An element with several uses gets their mean. Real pairs without feature axes
        become complex numbers, if torch has complex numbers of their dtype.
        """
        uses: list[list[Tensor]] = [[] for _ in self.parameters]
        for bias, value in zip(self.biases, values.biases, strict=True):
            shaped = _shaped(bias.view, value, NODE_DIMS, batch_dims)
            uses[bias.view.parameter].append(shaped)
        for block, value in zip(self.weights, values.edges, strict=True):
            shaped = _shaped(block.elements, value, EDGE_DIMS, batch_dims)
            uses[block.elements.parameter].append(shaped)
        return [self._mean_of(i, given, batch_dims) for i, given in enumerate(uses)]

    def flatten(self, values: Sequence[Tensor], batch_dims: int = 0) -> Tensor:
        """Concatenates per-parameter values: `(*batch, *shape, *features)` each ->
        `(*batch, numel, *features)`."""
        flat = []
        for value, spec in zip(values, self.parameters, strict=True):
            batch = value.shape[:batch_dims]
            features = value.shape[batch_dims + len(spec.shape) :]
            flat.append(value.reshape((*batch, spec.numel, *features)))
        return torch.cat(flat, dim=batch_dims)

    def unflatten(self, flat: Tensor, batch_dims: int = 0) -> list[Tensor]:
        """Views of a flat tensor as per-parameter values: the inverse of `flatten`."""
        batch, features = flat.shape[:batch_dims], flat.shape[batch_dims + 1 :]
        pieces = flat.split([spec.numel for spec in self.parameters], dim=batch_dims)
        values = []
        for piece, spec in zip(pieces, self.parameters, strict=True):
            values.append(piece.reshape((*batch, *spec.shape, *features)))
        return values

    def summary(self) -> str:
        """A table of the groups with their blocks and parameters, and the number of
        connected elements."""
        return summary(self)

    @cached_property
    def _use_numbers(self) -> list[list[UseNumber]]:
        return list(map(_number_uses, self.parameters, self.views))

    def _mean_of(self, i: int, uses: Sequence[Tensor], batch_dims: int) -> Tensor:
        """The values of parameter i; uses: (*batch, *view.shape, *features)."""
        spec, views = self.parameters[i], self.views[i]
        value = uses[0]
        batch = value.shape[:batch_dims]
        features = value.shape[batch_dims + len(views[0].shape) :]
        shape = (*batch, *spec.shape, *features)
        if len(uses) == 1 and views[0].is_whole(spec):
            return _as_declared(spec, value.reshape(shape), bool(features))
        mean = value.new_zeros(prod(batch), spec.numel, prod(features))
        for view, value, number in zip(views, uses, self._use_numbers[i], strict=True):
            value = value.reshape(prod(batch), *view.shape, prod(features))
            if not (isinstance(number, int) and number == 1):
                value = _running_mean(view.read(mean), value, number)
                mean = mean.clone()  # autograd keeps what was read
            view.write(mean, value)
        return _as_declared(spec, mean.reshape(shape), bool(features))

    def _read(
        self, values: Sequence[Tensor], view: View, dims: int, batch_dims: int
    ) -> Tensor:
        """A parameter's values in the order of a view, its axes after the first `dims`
        flattened to slots."""
        value = values[view.parameter]
        spec = self.parameters[view.parameter]
        batch = value.shape[:batch_dims]
        features = value.shape[batch_dims + len(spec.shape) :]
        shape = (*batch, *view.shape[:dims], prod(view.shape[dims:]), *features)
        if view.is_whole(spec):
            return value.reshape(shape)
        flat = value.reshape(prod(batch), spec.numel, prod(features))
        return view.read(flat).reshape(shape)


def _shaped(view: View, value: Tensor, dims: int, batch_dims: int) -> Tensor:
    """The values of a view; value: its first `dims` axes, slots and features."""
    batch, features = value.shape[:batch_dims], value.shape[batch_dims + dims + 1 :]
    return value.reshape((*batch, *view.shape, *features))


def _number_uses(spec: ParameterSpec, views: Sequence[View]) -> list[UseNumber]:
    if len(views) == 1:
        return [1]
    # numpy: cached tensors would depend on the mode in which they were made
    times = np.zeros(spec.numel, np.int32)
    use_numbers: list[UseNumber] = []
    for view in views:
        strides = [stride * times.itemsize for stride in view.strides]
        numbers = as_strided(times[view.offset :], view.shape, strides)
        numbers += 1
        different = np.unique(numbers)
        if len(different) == 1:
            use_numbers.append(int(different[0]))
        else:
            use_numbers.append(numbers[..., None].copy())
    return use_numbers


def _running_mean(old: Tensor, value: Tensor, number: UseNumber) -> Tensor:
    """The mean of `number` values, from that of all but the last; exact where all
    values are equal."""
    is_one = isinstance(number, int)
    k = number if is_one else torch.as_tensor(number, device=value.device)
    if value.is_floating_point() or value.is_complex():
        mean = old + (value - old) / k
    else:
        mean = old + (value - old) // k
    return torch.where(k == 1, value, mean) if isinstance(k, Tensor) else mean


def _as_declared(spec: ParameterSpec, value: Tensor, has_features: bool) -> Tensor:
    """Pairs of a complex parameter as complex numbers, if torch has their dtype."""
    has_complex = value.dtype in (torch.float16, torch.float32, torch.float64)
    if spec.is_complex and not has_features and has_complex:
        return torch.view_as_complex(value.contiguous())
    return value
