"""Turns collected groups, blocks and biases into a `NeuralGraph`: roles, depths and
coverage, and what may be done to neurons that go through some function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Literal, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ngopt.graph.core import (
    Bias,
    EdgeBlock,
    Index,
    NeuralGraph,
    NeuronGroup,
    ParameterSpec,
    View,
    contiguous_strides,
)
from ngopt.graph.pieces import connected

Place = TypeVar("Place", Bias, EdgeBlock)
Symmetry = Literal["phase", "sign", "scale"]

# Functions that networks apply to single neurons, as torch names them.
ACTIVATIONS = """
relu relu6 hardtanh gelu silu sigmoid tanh leaky_relu elu selu celu mish softplus hardswish
hardsigmoid softmax log_softmax sin cos exp softsign glu logsigmoid rrelu prelu
""".split()

# f(c x) = c f(x) for all c, for c = -1, for all c > 0; what joins positions of a neuron
# among them.
LINEAR = """
mul div neg mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
""".split()
ODD = "sin tanh hardshrink softshrink".split()
HOMOGENEOUS = """
relu leaky_relu abs amax amin max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d
""".split()
# At random, and linear for given random numbers.
RANDOM = "dropout feature_dropout".split()


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


def allowed(functions: Sequence[str]) -> Symmetry | None:
    """How neurons may be changed that go through all these functions and are undone by
    the next weights.

    "phase" and "sign", "sign" alone, or "scale" (see `activation_symmetry`);
    None where nothing is known.
    """
    curved = [name for name in functions if name not in (*LINEAR, *RANDOM)]
    if curved == ["sin"]:
        return "phase"
    if curved and all(name in ODD for name in curved):
        return "sign"
    if curved and all(name in HOMOGENEOUS for name in curved):
        return "scale"
    return None


def _left_over(spec: ParameterSpec, views: Sequence[View]) -> np.ndarray:
    """Numbers of the elements that no view has."""
    if any(view.numel == spec.numel for view in views):
        return np.empty(0, np.int64)
    free = np.ones(spec.numel, bool)
    for view in views:
        seen = as_strided(free[view.offset :], view.shape, view.strides)
        seen[...] = False
    return np.flatnonzero(free)


def longest_paths(count: int, blocks: Iterable[EdgeBlock]) -> list[int]:
    """For each of `count` groups the number of edges on the longest path to it.

    blocks: in the order of the forward pass, without those that lead back.
    """
    length = [0] * count
    for block in blocks:
        length[block.target] = max(length[block.target], length[block.source] + 1)
    return length


def relative_depths(layers: Sequence[int], component: Sequence[int]) -> list[float]:
    """The layer of each group in units of the last one in its component."""
    last: dict[int, int] = {}
    for layer, part in zip(layers, component, strict=True):
        last[part] = max(last.get(part, 1), layer)
    return [layer / last[part] for layer, part in zip(layers, component, strict=True)]


def components(graph: NeuralGraph) -> list[int]:
    """For every group the part of the graph that it is in; see `connected` in `pieces`."""
    return connected(len(graph.groups), graph.blocks)


def unconnected(graph: NeuralGraph) -> list[str]:
    """Names of the parameters outside the part of the graph that has the most elements."""
    component = components(graph)
    places = [(b.view, component[b.target]) for b in graph.weights]
    places += [(b.view, component[b.group]) for b in graph.biases]
    elements: Counter[int] = Counter()
    # elements that the network does not use may be in another part than the others
    parts: dict[int, set[int]] = {}
    for view, part in places:
        if view is not None:
            elements[part] += view.numel
            parts.setdefault(view.parameter, set()).add(part)
    largest = max(elements, key=elements.__getitem__, default=None)
    return [graph.parameters[i].name for i in sorted(parts) if largest not in parts[i]]


def whole(parameter: int, shape: tuple[int, ...]) -> View:
    """All elements of a parameter in their own order."""
    return View(parameter, shape, contiguous_strides(shape))


def layer_name(spec: ParameterSpec) -> str:
    return spec.name.removesuffix(".weight")


def reordered(graph: NeuralGraph, order: Sequence[int]) -> NeuralGraph:
    """The same graph with its parameters in another order.

    order: the present position of each.
    """
    if list(order) == list(range(len(graph.parameters))):
        return graph
    new = sorted(range(len(order)), key=order.__getitem__)
    blocks = (replace(b, view=_renumbered(b.view, new)) for b in graph.blocks)
    biases = (replace(b, view=_renumbered(b.view, new)) for b in graph.biases)
    return replace(
        graph,
        parameters=tuple(graph.parameters[i] for i in order),
        blocks=tuple(blocks),
        biases=tuple(biases),
        inferred=graph.inferred and tuple(graph.inferred[i] for i in order),
    )


def _renumbered(view: View | None, new: Sequence[int]) -> View | None:
    """The same elements of a parameter that has a new number; new: of each old one."""
    return view and replace(view, parameter=new[view.parameter])


def join_graphs(*graphs: NeuralGraph) -> NeuralGraph:
    """The disjoint union: parameters, groups and blocks of each graph after those of
    the one before.

    Graphs of different networks make one batch so; no node of one has an edge to
    another's.
    """
    return reduce(_join, graphs)


def _join(first: NeuralGraph, second: NeuralGraph) -> NeuralGraph:
    count = len(first.parameters)
    new = range(count, count + len(second.parameters))
    g = len(first.groups)
    old = first.membership
    inferred = [
        part.inferred or (False,) * len(part.parameters) for part in (first, second)
    ]
    blocks = (
        replace(
            b,
            view=_renumbered(b.view, new),
            source=b.source + g,
            target=b.target + g,
        )
        for b in second.blocks
    )
    biases = (
        replace(b, view=_renumbered(b.view, new), group=b.group + g)
        for b in second.biases
    )
    return NeuralGraph(
        (*first.parameters, *second.parameters),
        (*first.groups, *second.groups),
        (*first.blocks, *blocks),
        (*first.biases, *biases),
        (*first.unplaced, *second.unplaced),
        (
            *old,
            *(max(old) + 1 + m for m in second.members or [0] * len(second.groups)),
        ),
        (*inferred[0], *inferred[1]),
    )
