"""Puts collected groups, blocks and biases together as a `NeuralGraph`."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ngopt.graph.activation_symmetry import ACTIVATIONS, symmetry_of
from ngopt.graph.connectivity import longest_paths, with_depths
from ngopt.graph.groups_and_blocks import (
    Bias,
    EdgeBlock,
    Index,
    NeuronGroup,
    ParameterSpec,
    View,
)
from ngopt.graph.neural_graph import NeuralGraph

BiasOrBlock = TypeVar("BiasOrBlock", Bias, EdgeBlock)
Groups = Collection[int]


class GraphBuilder:
    """Collects groups, blocks and biases; `build` adds roles, depths and unused
    elements."""

    def __init__(self, parameters: Sequence[ParameterSpec]):
        self.parameters = tuple(parameters)
        self.groups: list[NeuronGroup] = []
        self.blocks: list[EdgeBlock] = []
        self.biases: list[Bias] = []
        self.unplaced: list[str] = []

    def add_group(self, name: str, size: int, kind: str = "neuron") -> int:
        self.groups.append(NeuronGroup(name, size, kind))
        return len(self.groups) - 1

    def add_weight(
        self, parameter: int, source: int, slot_shape: tuple[int, ...] = ()
    ) -> int:
        """Adds the edges of a whole weight, (n_target, n_source * slots) or (n_target,
        n_source, *slot_shape), and its target; returns the target."""
        spec = self.parameters[parameter]
        target = self.add_group(layer_name(spec.name), spec.shape[0])
        shape = (1, spec.shape[0], self.groups[source].size)
        kind = "flatten" if slot_shape and len(spec.shape) == 2 else "weight"
        view = View.whole(parameter, (*shape, *slot_shape))
        self.blocks.append(EdgeBlock(view, source, target, shape, slot_shape, kind))
        return target

    def add_bias(
        self, view: View, group: int, kind: str = "bias", index: Index = None
    ) -> None:
        self.biases.append(Bias(view, group, view.shape[1:], kind, index))

    def add_component(self, parameter: int) -> int:
        """Adds a parameter as a component of its own; returns its last group."""
        spec = self.parameters[parameter]
        if len(spec.shape) >= 2:
            source = self.add_group(f"{layer_name(spec.name)}.in", spec.shape[1])
            return self.add_weight(parameter, source, spec.shape[2:])
        group = self.add_group(spec.name, spec.numel)
        self.add_bias(View.whole(parameter, (spec.numel,)), group)
        return group

    def note_functions(self, group: int, names: Sequence[str]) -> None:
        """Stores which functions the network applies to neurons; names: in order."""
        activation = next((name for name in names if name in ACTIVATIONS), None)
        old, symmetry = self.groups[group], symmetry_of(names)
        self.groups[group] = replace(old, activation=activation, symmetry=symmetry)

    def views(self) -> dict[int, list[View]]:
        """The views of every parameter of which some elements have a place."""
        views: dict[int, list[View]] = {}
        for place in (*self.blocks, *self.biases):
            if place.view is not None:
                views.setdefault(place.view.parameter, []).append(place.view)
        return views

    def build(
        self, inputs: Groups = (), outputs: Groups = (), hidden: Groups = ()
    ) -> NeuralGraph:
        """The graph; parameters without a place become components of their own.

        inputs, outputs: groups of the network's inputs and outputs. hidden: groups that
        are neither, even without edges to or from them. The roles of other groups
        follow from their edges.
        """
        views = self.views()
        for i, spec in enumerate(self.parameters):
            if i not in views:
                self.unplaced.append(spec.name)
                self.add_component(i)
        for i in sorted(views):
            self._add_unused(i, views[i])
        roles = zip(self.groups, self._roles(inputs, outputs, hidden), strict=True)
        graph = NeuralGraph(
            tuple(spec.paired for spec in self.parameters),
            tuple(replace(group, role=role) for group, role in roles),
            tuple(map(self._paired, self.blocks)),
            tuple(map(self._paired, self.biases)),
            tuple(self.unplaced),
        )
        return with_depths(graph, longest_paths(len(graph.groups), graph.blocks))

    def _add_unused(self, parameter: int, views: Sequence[View]) -> None:
        """Adds nodes without edges for the elements that no view has."""
        spec = self.parameters[parameter]
        if max(view.numel for view in views) == spec.numel:
            return
        is_free = np.ones(spec.numel, bool)
        for view in views:
            as_strided(is_free[view.offset :], view.shape, view.strides)[...] = False
        rest = np.flatnonzero(is_free)
        if not len(rest):
            return
        group = self.add_group(f"{spec.name}.unused", len(rest))
        # where the distance to the next element changes
        breaks = np.flatnonzero(np.diff(rest, 2)) + 2
        for part in np.split(np.arange(len(rest)), breaks):
            first = int(rest[part[0]])
            step = int(rest[part[1]]) - first if len(part) > 1 else 0
            view = View(parameter, (len(part),), (step,), first)
            self.add_bias(view, group, "other", tuple(part.tolist()))

    def _paired(self, place: BiasOrBlock) -> BiasOrBlock:
        """The two numbers of every element of a complex parameter become two slots."""
        view = place.view
        if view is None or not self.parameters[view.parameter].is_complex:
            return place
        strides = (*[2 * stride for stride in view.strides], 1)
        pairs = View(view.parameter, (*view.shape, 2), strides, 2 * view.offset)
        return replace(place, view=pairs, slot_shape=(*place.slot_shape, 2))

    def _roles(self, inputs: Groups, outputs: Groups, hidden: Groups) -> Iterator[str]:
        sources = {block.source for block in self.blocks}
        forward = [block for block in self.blocks if block.target != block.source]
        targets = {block.target for block in forward}.difference(inputs)
        for i in range(len(self.groups)):
            if i in hidden:
                yield "hidden"
            elif i in targets:
                yield "output" if i in outputs or i not in sources else "hidden"
            elif i in sources:
                yield "input"
            else:
                yield "output" if i in outputs else "isolated"


def slot_shape(
    shape: tuple[int, ...], size: int, smallest: int = 1
) -> tuple[int, ...] | None:
    """Slots of the edges from `size` neurons to a weight (n_out, n_in, *kernel); None
    if the sizes do not fit.

    A matrix may read a flattened map of at least `smallest` channels.
    """
    inputs, kernel = shape[1], shape[2:]
    if inputs == size:
        return kernel
    if not kernel and inputs > size >= smallest and inputs % size == 0:
        return (inputs // size,)
    return None


def layer_name(parameter: str) -> str:
    return parameter.removesuffix(".weight")
