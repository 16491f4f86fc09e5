"""All symmetries of a graph: generators and order of its group of automorphisms,
found by BLISS through igraph.

The coloured graph that BLISS sees has a vertex for every neuron, every edge and every
bias, and arcs from sources over edges to targets. Inputs and outputs stay where they
are, other neurons stay in their group, and edges and biases go to those of the same
parameter and meaning. An edge keeps the order of its slots, and where an element has
several places they move together: a vertex for the element ties them.
"""

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import igraph
import numpy as np
import pytest
import torch
from torch import Tensor

from ngopt.graph import EdgeBlock, NeuralGraph
from ngopt.graph.kinds import NODE_KINDS, kind_code
from ngopt.graph.views.parameter_graph import is_parameter_edge

MOST_VERTICES = 20_000


def input_output_index(graph: NeuralGraph) -> tuple[Tensor, Tensor]:
    """The number of every neuron among the inputs, and among the outputs; -1 for other
    nodes (Lim et al. 2024).

    Pinned neurons count as outputs. Returns two (nodes,), in the order of
    `to_edge_list`.
    """
    inputs, outputs = set(), set()
    for i, group in enumerate(graph.groups):
        if group.kind == "parameter":
            continue
        if group.role == "input":
            inputs.add(i)
        elif group.role != "isolated" and group.is_fixed:
            outputs.add(i)
    for block in graph.blocks:
        if is_parameter_edge(graph, block):
            inputs.discard(block.source)
            outputs.discard(block.source)
    return _numbered(graph, inputs), _numbered(graph, outputs)


def _numbered(graph: NeuralGraph, groups: Collection[int]) -> Tensor:
    """Numbers of the nodes of some groups, counted through all of them; -1 for
    others."""
    numbers = []
    count = 0
    for i, group in enumerate(graph.groups):
        if i in groups:
            numbers.append(torch.arange(count, count + group.size, device="cpu"))
            count += group.size
        else:
            numbers.append(torch.full((group.size,), -1, device="cpu"))
    return torch.cat(numbers)


@dataclass(frozen=True)
class Automorphism:
    """Where everything comes from: new[k] = old[order[k]].

    nodes: (nodes,), numbered through all groups. elements: (numel,), of the flattened
    parameters.
    """

    nodes: Tensor
    elements: Tensor

    def move(self, graph: NeuralGraph, values: Sequence[Tensor]) -> list[Tensor]:
        """Per-parameter values, taken along."""
        real = [torch.view_as_real(v) if v.is_complex() else v for v in values]
        moved = graph.unflatten(graph.flatten(real)[self.elements])
        return [
            torch.view_as_complex(m.clone()) if v.is_complex() else m
            for m, v in zip(moved, values, strict=True)
        ]

    def permutations(self, graph: NeuralGraph) -> dict[int, Tensor]:
        """The order of the neurons of every group that has another than before,
        as `permute` takes it."""
        starts = _starts(graph)
        orders = {}
        for i in range(len(graph.groups)):
            order = self.nodes[starts[i] : starts[i + 1]] - starts[i]
            if not torch.equal(order, torch.arange(len(order))):
                orders[i] = order
        return orders

    def describe(self, graph: NeuralGraph) -> str:
        """What moves: neurons by group, and the parameters."""
        neurons = {}
        for i, order in self.permutations(graph).items():
            moved = (order != torch.arange(len(order))).nonzero().flatten()
            neurons[f"{i} {graph.groups[i].name}"] = moved.tolist()
        changed = graph.unflatten(self.elements != torch.arange(len(self.elements)))
        rows = zip(graph.parameters, changed, strict=True)
        names = [spec.name for spec, is_changed in rows if is_changed.any()]
        return f"neurons {neurons}, parameters {names}"


def automorphisms(graph: NeuralGraph, by_type: bool = False) -> list[Automorphism]:
    """Generators of the group of automorphisms, those left out that move no parameter.

    by_type: neurons and edges are exchanged with all others of their type, not only
    within groups and parameters. Types of edges are kind and kernel position (Lim et
    al. 2024).
    """
    coloured = _Coloured(graph, by_type)
    generators = coloured.graph.automorphism_group(color=coloured.colours)
    moves = [coloured.automorphism(np.asarray(image)) for image in generators]
    return [a for a in moves if not torch.equal(a.elements, torch.arange(graph.numel))]


def count_automorphisms(graph: NeuralGraph, by_type: bool = False) -> int:
    """The order of the group, exact below 2^53."""
    coloured = _Coloured(graph, by_type)
    return int(coloured.graph.count_automorphisms(color=coloured.colours))


def subproducts(
    generators: Sequence[Automorphism], count: int, seed: int = 0
) -> list[Automorphism]:
    """Products of random subsets of generators.

    If some generator is no symmetry, each is none with a probability of one half at
    least (Babai 1991, lemma 2.1).
    """
    rng, products = random.Random(seed), []
    for _ in range(count if generators else 0):
        chosen = [g for g in generators if rng.random() < 0.5]
        chosen = chosen or [rng.choice(generators)]
        nodes, elements = chosen[0].nodes, chosen[0].elements
        for other in chosen[1:]:
            nodes = nodes[other.nodes]
            elements = elements[other.elements]
        products.append(Automorphism(nodes, elements))
    return products


def _starts(graph: NeuralGraph) -> list[int]:
    return np.cumsum([0, *(group.size for group in graph.groups)]).tolist()


class _Coloured:
    """The coloured graph, and the parameter elements of its vertices: those of v are
    `elements[first[v]]` and on."""

    def __init__(self, graph: NeuralGraph, by_type: bool):
        self.neural, self.by_type = graph, by_type
        self.starts = _starts(graph)
        self.names: dict[tuple, int] = {}
        self.colours: list[int] = [self._colour(*c) for c in self._nodes()]
        self.arcs: list[np.ndarray] = []
        # vertices, and their (n, slots) elements
        self.places: list[tuple[np.ndarray, np.ndarray]] = []
        values = graph.gather(graph.unflatten(torch.arange(graph.numel)))
        for bias, elements in zip(graph.biases, values.biases, strict=True):
            neurons = self._neurons(bias.group, bias.index)
            parameter = None if by_type else bias.view.parameter
            key = ("bias", parameter, bias.kind, bias.slot_shape)
            self._add_places(key, elements.numpy(), None, neurons)
        for block, elements in zip(graph.weights, values.edges, strict=True):
            parameter = None if by_type else block.view.parameter
            key = ("edge", parameter, block.kind, block.slot_shape, block.position)
            self._add_places(key, elements.flatten(0, 2).numpy(), *self._ends(block))
        self._locate()
        self._tie()
        self._add_constants()
        if len(self.colours) > MOST_VERTICES:
            count = len(self.colours)
            pytest.skip(f"{count} vertices are too many for all automorphisms")
        arcs = np.concatenate(self.arcs).tolist()
        self.graph = igraph.Graph(len(self.colours), arcs, directed=True)

    def _colour(self, *key) -> int:
        return self.names.setdefault(key, len(self.names))

    def _nodes(self):
        """Colours of neurons; what parameters are shared by many neurons moves with
        those."""
        groups = self.neural.groups
        if self.by_type:
            sizes = torch.tensor([group.size for group in groups])
            kinds = [kind_code(group.kind, NODE_KINDS) for group in groups]
            types = torch.tensor(kinds).repeat_interleave(sizes)
            inputs, outputs = input_output_index(self.neural)
            yield from torch.stack([types, inputs, outputs], dim=1).tolist()
            return
        for i, group in enumerate(groups):
            fixed = group.is_fixed and group.kind != "parameter"
            yield from (("node", i, k if fixed else None) for k in range(group.size))

    def _ends(self, block: EdgeBlock) -> tuple[np.ndarray, np.ndarray]:
        """Sources and targets of all edges."""
        g, t, s = block.shape
        sources = self._neurons(block.source, block.source_index)
        targets = self._neurons(block.target, block.target_index)
        ends = np.broadcast_arrays(sources.reshape(g, 1, s), targets.reshape(g, t, 1))
        return ends[0].reshape(-1), ends[1].reshape(-1)

    def _neurons(self, group: int, index: tuple[int, ...] | None) -> np.ndarray:
        """Neurons of a group, numbered through all groups."""
        everything = np.arange(self.starts[group], self.starts[group + 1])
        return everything if index is None else everything[list(index)]

    def _add(self, count: int, *key) -> np.ndarray:
        """New vertices of one colour."""
        first = len(self.colours)
        self.colours += [self._colour(*key)] * count
        return np.arange(first, first + count)

    def _connect(self, a: np.ndarray, b: np.ndarray) -> None:
        self.arcs.append(np.stack([a, b], axis=1))

    def _add_places(
        self,
        key: tuple,
        elements: np.ndarray,
        sources: np.ndarray | None,
        targets: np.ndarray,
    ) -> None:
        vertices = self._add(len(targets), *key)
        if sources is not None:
            self._connect(sources, vertices)
        self._connect(vertices, targets)
        self.places.append((vertices, elements))

    def _add_constants(self) -> None:
        """Parallel edges of value 1 are one vertex, as exchanging them changes
        nothing."""
        counts: Counter = Counter()
        for block in self.neural.constants:
            sources, targets = self._ends(block)
            for ends in zip(sources.tolist(), targets.tolist(), strict=True):
                counts[*ends, block.kind] += 1
        for (source, target, kind), number in counts.items():
            vertex = self._add(1, "constant", kind, number)
            self._connect(np.array([source]), vertex)
            self._connect(vertex, np.array([target]))

    def _tie(self) -> None:
        """Connects all places of an element that has several, at their slots, by a
        vertex."""
        uses = np.bincount(self.elements, minlength=self.neural.numel)
        tied = np.flatnonzero(uses > 1)
        vertex = np.full(self.neural.numel, -1)
        vertex[tied] = self._add(len(tied), "element")
        for vertices, elements in self.places:
            for slot in range(elements.shape[1]):
                several = uses[elements[:, slot]] > 1
                between = self._add(int(several.sum()), "slot", slot)
                self._connect(vertices[several], between)
                self._connect(between, vertex[elements[several, slot]])

    def _locate(self) -> None:
        """Lists the elements of all places, and where those of a vertex begin."""
        self.elements = np.concatenate(
            [elements.reshape(-1) for _, elements in self.places]
        )
        self.first = np.zeros(len(self.colours), int)
        begin = 0
        for vertices, elements in self.places:
            self.first[vertices] = begin + np.arange(len(vertices)) * elements.shape[1]
            begin += elements.size

    def automorphism(self, image: np.ndarray) -> Automorphism:
        """The effect of a permutation of vertices on neurons and elements."""
        nodes = np.empty(self.starts[-1], int)
        order = np.arange(self.neural.numel)
        nodes[image[: self.starts[-1]]] = np.arange(self.starts[-1])
        for vertices, elements in self.places:
            slots = np.arange(elements.shape[1])
            moved = self.first[image[vertices]][:, None] + slots
            order[self.elements[moved]] = elements
        return Automorphism(torch.from_numpy(nodes), torch.from_numpy(order))
