"""Turns collected groups, blocks and biases into a `NeuralGraph`: roles, depths and
coverage, and what may be done to neurons that go through some function."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ngopt.graph.activation_symmetry import ACTIVATIONS, allowed
from ngopt.graph.connectivity import connected, longest_paths, relative_depths
from ngopt.graph.groups_and_blocks import (
    Bias,
    EdgeBlock,
    Index,
    NeuronGroup,
    ParameterSpec,
    View,
    contiguous_strides,
)
from ngopt.graph.neural_graph import NeuralGraph

Place = TypeVar("Place", Bias, EdgeBlock)


class GraphBuilder:
    """Collects a graph piece by piece; `build` derives what depends on the whole
    topology."""

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
        """Adds the edges of a whole weight (n_target, n_source * slots or n_source,
        *slot_shape) and its target."""
        spec = self.parameters[parameter]
        target = self.add_group(layer_name(spec), spec.shape[0])
        shape = (1, spec.shape[0], self.groups[source].size)
        kind = "flatten" if slot_shape and len(spec.shape) == 2 else "weight"
        view = whole(parameter, (*shape, *slot_shape))
        self.blocks.append(EdgeBlock(view, source, target, shape, slot_shape, kind))
        return target

    def add_bias(
        self, view: View, group: int, kind: str = "bias", index: Index = None
    ) -> None:
        self.biases.append(Bias(view, group, view.shape[1:], kind, index))

    def add_component(self, parameter: int) -> int:
        """Places a parameter that connects to nothing as a component of its own;
        returns its last group."""
        spec = self.parameters[parameter]
        if len(spec.shape) >= 2:
            source = self.add_group(f"{layer_name(spec)}.in", spec.shape[1])
            return self.add_weight(parameter, source, spec.shape[2:])
        group = self.add_group(spec.name, spec.numel)
        self.add_bias(whole(parameter, (spec.numel,)), group)
        return group

    def note_functions(self, group: int, names: Sequence[str]) -> None:
        """Notes down what is applied to neurons, in its order."""
        first = next((name for name in names if name in ACTIVATIONS), None)
        noted = replace(self.groups[group], activation=first, symmetry=allowed(names))
        self.groups[group] = noted

    @property
    def placed(self) -> set[int]:
        return {
            place.view.parameter
            for place in (*self.blocks, *self.biases)
            if place.view is not None
        }

    def build(
        self,
        inputs: Collection[int] = (),
        outputs: Collection[int] = (),
        hidden: Collection[int] = (),
    ) -> NeuralGraph:
        """The graph; parameters that are nowhere yet become components of their own.

        inputs, outputs: groups that are known to be the network's. hidden: groups that
        are neither, even if nothing leads to them or they lead nowhere. Of others the
        edges decide.
        """
        for i in sorted(set(range(len(self.parameters))) - self.placed):
            self.unplaced.append(self.parameters[i].name)
            self.add_component(i)
        self._add_unused()
        blocks = [self._paired(b) for b in self.blocks]
        biases = [self._paired(b) for b in self.biases]
        groups = [
            replace(group, role=role, depth=depth)
            for group, role, depth in zip(
                self.groups,
                self._roles(inputs, outputs, hidden),
                self._depths(),
                strict=True,
            )
        ]
        parameters = tuple(spec.paired for spec in self.parameters)
        return NeuralGraph(
            parameters,
            tuple(groups),
            tuple(blocks),
            tuple(biases),
            tuple(self.unplaced),
        )

    def _add_unused(self) -> None:
        """Nodes without edges for the elements of parameters of which the network uses
        others."""
        views: list[list[View]] = [[] for _ in self.parameters]
        for place in (*self.blocks, *self.biases):
            if place.view is not None:
                views[place.view.parameter].append(place.view)
        for i, spec in enumerate(self.parameters):
            rest = _left_over(spec, views[i])
            if not len(rest):
                continue
            group = self.add_group(f"{spec.name}.unused", len(rest))
            # where the distance to the next changes
            breaks = np.flatnonzero(np.diff(rest, 2)) + 2
            for part in np.split(np.arange(len(rest)), breaks):
                step = int(rest[part[1]] - rest[part[0]]) if len(part) > 1 else 0
                view = View(i, (len(part),), (step,), int(rest[part[0]]))
                self.add_bias(view, group, "other", tuple(part.tolist()))

    def _paired(self, place: Place) -> Place:
        """The two numbers of every element of a complex parameter are two more slots."""
        view = place.view
        if view is None or not self.parameters[view.parameter].is_complex:
            return place
        strides = (*(2 * s for s in view.strides), 1)
        pairs = View(view.parameter, (*view.shape, 2), strides, 2 * view.offset)
        return replace(place, view=pairs, slot_shape=(*place.slot_shape, 2))

    def _roles(
        self,
        inputs: Collection[int],
        outputs: Collection[int],
        hidden: Collection[int],
    ) -> list[str]:
        sources = {block.source for block in self.blocks}
        fed = {block.target for block in self.blocks if block.target != block.source}
        targets = fed.difference(inputs)
        roles = []
        for i in range(len(self.groups)):
            if i in hidden:
                roles.append("hidden")
            else:
                roles.append(_role(i in sources, i in targets, i in outputs))
        return roles

    def _depths(self) -> list[float]:
        count = len(self.groups)
        forward = [block for block in self.blocks if block.target != block.source]
        return relative_depths(
            longest_paths(count, forward), connected(count, self.blocks)
        )


def _role(is_source: bool, is_target: bool, is_output: bool) -> str:
    """What a group is for the network: whether edges lead from it and to it decides."""
    if is_target:
        return "output" if is_output or not is_source else "hidden"
    if is_source:
        return "input"
    return "output" if is_output else "isolated"


def _left_over(spec: ParameterSpec, views: Sequence[View]) -> np.ndarray:
    """Numbers of the elements that no view has."""
    if any(view.numel == spec.numel for view in views):
        return np.empty(0, np.int64)
    free = np.ones(spec.numel, bool)
    for view in views:
        seen = as_strided(free[view.offset :], view.shape, view.strides)
        seen[...] = False
    return np.flatnonzero(free)


def whole(parameter: int, shape: tuple[int, ...]) -> View:
    """All elements of a parameter in their own order."""
    return View(parameter, shape, contiguous_strides(shape))


def layer_name(spec: ParameterSpec) -> str:
    return spec.name.removesuffix(".weight")
