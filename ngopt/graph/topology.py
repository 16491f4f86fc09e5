"""Turns collected groups, blocks and biases into a `NeuralGraph`: positions, roles and coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ngopt.graph.core import Bias, Convolution, EdgeBlock, NeuralGraph, NeuronGroup, ParameterSpec


class GraphBuilder:
    """Collects a graph piece by piece; `build` derives what depends on the whole topology."""

    def __init__(self, parameters: Sequence[ParameterSpec]):
        self.parameters = tuple(parameters)
        self.groups: list[NeuronGroup] = []
        self.blocks: list[EdgeBlock] = []
        self.biases: list[Bias] = []

    def add_group(self, name: str, size: int) -> int:
        self.groups.append(NeuronGroup(name, size))
        return len(self.groups) - 1

    def add_block(
        self,
        parameter: int,
        source: int,
        slot_shape: tuple[int, ...] = (),
        convolution: Convolution | None = None,
    ) -> int:
        """Adds the edges of a weight (n_target, n_source * slots or n_source, *slot_shape) and its target group."""
        spec = self.parameters[parameter]
        target = self.add_group(_layer_name(spec), spec.shape[0])
        self.blocks.append(EdgeBlock(parameter, source, target, slot_shape, convolution))
        return target

    def add_bias(self, parameter: int, group: int) -> None:
        self.biases.append(Bias(parameter, group))

    def has_bias(self, group: int) -> bool:
        return any(bias.group == group for bias in self.biases)

    def add_component(self, parameter: int) -> int:
        """Places a parameter that connects to nothing as a component of its own; returns its last group."""
        spec = self.parameters[parameter]
        if len(spec.shape) >= 2:
            source = self.add_group(f"{_layer_name(spec)}.in", spec.shape[1])
            return self.add_block(parameter, source, spec.shape[2:])
        group = self.add_group(spec.name, spec.numel)
        self.add_bias(parameter, group)
        return group

    @property
    def placed(self) -> set[int]:
        return {place.parameter for place in (*self.blocks, *self.biases)}

    def add_transform(self, group: int, module) -> None:
        transforms = (*self.groups[group].transforms, module)
        self.groups[group] = replace(self.groups[group], transforms=transforms)

    def build(self) -> NeuralGraph:
        placed = sorted(place.parameter for place in (*self.blocks, *self.biases))
        assert placed == list(range(len(self.parameters))), "every parameter has exactly one place"
        groups = [
            replace(group, role=role, depth=depth)
            for group, role, depth in zip(self.groups, self._roles(), self._depths(), strict=True)
        ]
        return NeuralGraph(self.parameters, tuple(groups), tuple(self.blocks), tuple(self.biases))

    def _roles(self) -> list[str]:
        sources = {block.source for block in self.blocks}
        targets = {block.target for block in self.blocks}
        names = {(False, False): "isolated", (True, False): "input", (True, True): "hidden", (False, True): "output"}
        return [names[i in sources, i in targets] for i in range(len(self.groups))]

    def _depths(self) -> list[float]:
        layer, component = [0] * len(self.groups), list(range(len(self.groups)))
        for block in self.blocks:  # blocks are collected in the order of the forward pass
            layer[block.target] = max(layer[block.target], layer[block.source] + 1)
            old, new = component[block.target], component[block.source]
            component = [new if c == old else c for c in component]
        longest = {c: max(n for n, d in zip(layer, component, strict=True) if d == c) for c in component}
        return [n / max(longest[c], 1) for n, c in zip(layer, component, strict=True)]


def _layer_name(spec: ParameterSpec) -> str:
    return spec.name.removesuffix(".weight")


def join_graphs(first: NeuralGraph, second: NeuralGraph) -> NeuralGraph:
    """The disjoint union: parameters, groups and blocks of the second after those of the first."""
    p, g = len(first.parameters), len(first.groups)
    blocks = (replace(b, parameter=b.parameter + p, source=b.source + g, target=b.target + g) for b in second.blocks)
    biases = (Bias(b.parameter + p, b.group + g) for b in second.biases)
    return NeuralGraph(
        (*first.parameters, *second.parameters),
        (*first.groups, *second.groups),
        (*first.blocks, *blocks),
        (*first.biases, *biases),
    )
