"""The parameter graph of Lim et al. 2024 (Graph Metanetworks), made from the neural
graph of Kofinas et al. 2024.

Every parameter is an edge, of a kind. The positions of a kernel are parallel edges. The
bias of a layer is a node with an edge to each neuron of the layer. So are the scale and
the shift of a norm ("gamma" and "beta"), the slope of a parametric activation and any
other parameter of neurons: one node for each parameter, with an edge for each element.
Where a neuron has several elements these are parallel edges of different position. A
parameter that is used twice is still one node.

In the neural graph, the neurons after a norm are a group of their own. Here they are
merged with those before the norm, if the kinds of all edges still distinguish both
sides of the norm. Otherwise the merged graph would have automorphisms that are no
symmetries of the network, and the group after the norm stays (see `Placement`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from operator import mul
from typing import Literal

from ngopt.graph.connectivity import longest_paths, with_depths
from ngopt.graph.groups_and_blocks import (
    Bias,
    EdgeBlock,
    Index,
    NeuronGroup,
    NeuronSet,
    View,
)
from ngopt.graph.neural_graph import NeuralGraph

SCALES = ("gamma", "scale")


def parameter_graph(graph: NeuralGraph) -> NeuralGraph:
    """The parameter graph (Lim et al. 2024) of a network, from its neural graph.

    It has the same parameters, so that `gather` and `scatter` use the same values. All
    of these are on edges with one slot. Groups keep their roles. Nodes of parameters
    are inputs, with the depth of their neurons.
    """
    return _filled_builder(graph).build()


def neuron_places(graph: NeuralGraph) -> list[NeuronSet]:
    """For every group of a neural graph, where its neurons are in the parameter graph.

    Groups before and after a norm can have the same place.
    """
    builder = _filled_builder(graph)
    return [builder.place_of(group, None) for group in range(len(graph.groups))]


def _filled_builder(graph: NeuralGraph) -> "_ParameterGraphBuilder":
    placements = _placements(graph)
    merged = [graph.blocks[n] for n, place in placements.items() if place == "merged"]
    builder = _ParameterGraphBuilder(graph, merged)
    for number, block in enumerate(graph.blocks):
        if number in placements:
            builder.add_scale(block, placements[number])
        elif not any(_is_skip(block, scale) for scale in merged):
            builder.add(block)
    for bias in graph.biases:
        builder.add_parameter(bias.view, bias.group, bias.index, bias.kind)
    return builder


# Scales of norms


Placement = Literal["merged", "before", "behind", "diagonal"]
"""Where the scale of a norm goes; in the neural graph it is diagonal edges from neurons
S to neurons T.

    merged      S and T become one group, with the gamma node
    before      S has the gamma node; edges of value 1 lead from S to T; nothing but
                this norm reads S, as in a sum of two norms where a ResNet reduces its
                maps
    behind      T has the gamma node; edges of value 1 lead from S to T; nothing else
                leads to T, as with two norms of the same neurons, or one after the
                other
    diagonal    the scale stays on edges from S to T
"""


def _placements(graph: NeuralGraph) -> dict[int, Placement]:
    """The placement of every block that is a scale, by the block's number."""
    layer = layers(graph)
    scales = [block for block in graph.blocks if block.kind in SCALES]
    # groups with a node of a scale
    with_gamma = {b.target for b in scales if graph.groups[b.source].kind in SCALES}
    placements: dict[int, Placement] = {}
    for number, block in enumerate(graph.blocks):
        # from neurons to neurons, not from the node of a parameter
        are_neurons = graph.groups[block.source].kind not in SCALES
        is_diagonal = block.shape[1:] == (1, 1)
        if block.kind not in SCALES or not (is_diagonal and are_neurons):
            continue
        has_gamma = block.source in with_gamma
        readers = [b for b in graph.blocks if b.source == block.source]
        readers = [b for b in readers if graph.groups[b.target].kind != "group"]
        if not has_gamma and _can_merge(graph, block, layer):
            placements[number] = "merged"
            with_gamma |= {block.source, block.target}
        elif not has_gamma and readers == [block]:
            placements[number] = "before"
            with_gamma.add(block.source)
        elif graph.blocks_into(block.target) == (block,):
            placements[number] = "behind"
            with_gamma.add(block.target)
        else:
            placements[number] = "diagonal"
    return placements


def _can_merge(graph: NeuralGraph, scale: EdgeBlock, layer: Sequence[int]) -> bool:
    """Whether the kinds of edges distinguish both sides of a norm after merging.

    The norm must connect all neurons of two groups, and not inputs to outputs.
    """
    before, behind = graph.groups[scale.source], graph.groups[scale.target]
    roles = {before.role, behind.role}
    is_output = "output" in roles or before.is_pinned or behind.is_pinned
    is_complete = before.size == behind.size == scale.shape[0]
    if not is_complete or ("input" in roles and is_output):
        return False
    # the parts of a norm are the scale, edges past it, and those from the nodes of its
    # groups (GroupNorm)
    others = [b for b in graph.blocks if b is not scale and not _is_skip(b, scale)]
    readers = {block.target for block in others if block.source == scale.source}
    group_nodes = {n for n in readers if graph.groups[n].kind == "group"}
    beside = []
    for block in others:
        if block.target == scale.target:
            if block.source in group_nodes:
                continue
            if layer[block.source] >= layer[scale.source]:
                return False  # merging might make a cycle
        beside.append(block)
    kinds = _kinds_at(scale.source, beside, graph.biases)
    if not kinds.isdisjoint({("out", kind) for kind in SCALES}):
        return False  # another norm of the same neurons
    return kinds.isdisjoint(_kinds_at(scale.target, beside, graph.biases))


def _kinds_at(
    group: int, blocks: Sequence[EdgeBlock], biases: Sequence[Bias]
) -> set[tuple[str, str]]:
    """The kinds of edges out of a group and into it, and of its features."""
    kinds = {("out", block.kind) for block in blocks if block.source == group}
    kinds |= {("into", block.kind) for block in blocks if block.target == group}
    return kinds | {("feature", bias.kind) for bias in biases if bias.group == group}


def _is_skip(block: EdgeBlock, scale: EdgeBlock) -> bool:
    """Whether a block is edges of value 1 past a norm, from the neurons before it to
    the same ones behind it."""
    ends = (scale.source, scale.target, scale.shape)
    if block.view is not None or (block.source, block.target, block.shape) != ends:
        return False
    return set(_pairs(block)) == set(_pairs(scale))


def _pairs(block: EdgeBlock) -> Iterator[tuple[int, int]]:
    """Source and target of every edge of a diagonal block."""
    every = range(block.shape[0])
    return zip(block.source_index or every, block.target_index or every, strict=True)


# Construction


class _ParameterGraphBuilder:
    """Collects groups and blocks of a parameter graph; its methods take groups of the
    neural graph.

    merged: the scales of which both ends become one group.
    """

    def __init__(self, graph: NeuralGraph, merged: Sequence[EdgeBlock]):
        self.graph = graph
        self.blocks: list[EdgeBlock] = []
        self.groups: list[NeuronGroup] = []
        self.merged: dict[int, NeuronSet] = {}  # group behind a norm -> before it
        for scale in merged:
            source_of = {target: source for source, target in _pairs(scale)}
            index = tuple(source_of[neuron] for neuron in range(scale.shape[0]))
            self.merged[scale.target] = NeuronSet(scale.source, index)
        self.number: dict[int, int] = {}  # group of the neural graph -> of this one
        for old, group in enumerate(graph.groups):
            if old not in self.merged:
                self.number[old] = len(self.groups)
                self.groups.append(group)
        for behind, before in self.merged.items():
            new = self.number[before.group]
            self.groups[new] = _joined(self.groups[new], graph.groups[behind])
        self.parameter_nodes: dict[tuple[int, str], int] = {}

    def place_of(self, group: int, index: Index) -> NeuronSet:
        """The place of neurons of a group of the neural graph."""
        if group in self.merged:
            group, place = self.merged[group]
            assert place is not None
            index = place if index is None else tuple(place[k] for k in index)
            if index == tuple(range(self.graph.groups[group].size)):
                index = None
        return NeuronSet(self.number[group], index)

    def add(self, block: EdgeBlock) -> None:
        source, source_index = self.place_of(block.source, block.source_index)
        target, target_index = self.place_of(block.target, block.target_index)
        moved = replace(block, source=source, target=target)
        moved = replace(moved, source_index=source_index, target_index=target_index)
        self.blocks += _single_slots(moved)

    def add_scale(self, block: EdgeBlock, placement: Placement) -> None:
        if placement == "diagonal":
            self.add(block)
            return
        n, _, _, *slots = block.elements.shape
        stride, _, _, *rest = block.elements.strides
        view = replace(block.elements, shape=(n, *slots), strides=(stride, *rest))
        if placement == "behind":
            self.add_parameter(view, block.target, block.target_index, block.kind)
        else:
            self.add_parameter(view, block.source, block.source_index, block.kind)
        if placement != "merged":
            self.add(replace(block, view=None, slot_shape=(), kind="residual"))

    def add_parameter(self, view: View, group: int, index: Index, kind: str) -> None:
        """Adds edges from a parameter's node to neurons; view: (n, *slot_shape)."""
        key = (view.parameter, kind)
        if key not in self.parameter_nodes:
            self.parameter_nodes[key] = len(self.groups)
            name = self.graph.parameters[view.parameter].name
            self.groups.append(NeuronGroup(name, 1, kind, "input"))
        source = self.parameter_nodes[key]
        target, index = self.place_of(group, index)
        shape, slots = (1, view.shape[0], 1), view.shape[1:]
        strides = (0, view.strides[0], 0, *view.strides[1:])
        edges = replace(view, shape=(*shape, *slots), strides=strides)
        block = EdgeBlock(edges, source, target, shape, slots, kind, target_index=index)
        self.blocks += _single_slots(block)

    def build(self) -> NeuralGraph:
        groups, blocks = tuple(self.groups), tuple(self.blocks)
        old = self.graph
        graph = NeuralGraph(
            old.parameters, groups, blocks, (), old.unplaced, reasons=old.reasons
        )
        return with_depths(graph, layers(graph))


def _joined(before: NeuronGroup, behind: NeuronGroup) -> NeuronGroup:
    """The group that the groups before and behind a norm become."""
    roles = {before.role, behind.role} - {"hidden"}
    return replace(
        before,
        role=roles.pop() if roles else "hidden",
        activation=behind.activation or before.activation,
        symmetry=None,
        is_pinned=before.is_pinned or behind.is_pinned,
    )


def _single_slots(block: EdgeBlock) -> Iterator[EdgeBlock]:
    """A block for every slot, with its kernel position."""
    view = block.view
    if view is None or not block.slot_shape:
        yield block
        return
    for position in product(*map(range, block.slot_shape)):
        offset = view.offset + sum(map(mul, position, view.strides[3:]))
        slot = View(view.parameter, view.shape[:3], view.strides[:3], offset)
        yield replace(block, view=slot, slot_shape=(), position=position)


def layers(graph: NeuralGraph) -> list[int]:
    """The layer of every group: the length of the longest path to it, 0 at
    inputs (Lim et al. 2024, layer).

    The node of a parameter has the layer of its neurons.
    """
    pooled = {(block.target, block.source) for block in graph.constants}
    forward = []
    for block in graph.blocks:
        # back from a node that stands for several to these
        is_return = block.kind == "spread" and (block.source, block.target) in pooled
        if not is_return and not is_parameter_edge(graph, block):
            forward.append(block)
    layer = longest_paths(len(graph.groups), forward)
    for block in reversed(graph.blocks):
        if is_parameter_edge(graph, block):
            layer[block.source] = layer[block.target]
    return layer


def is_parameter_edge(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block leaves the node of a parameter, whose kind its edges have."""
    return block.view is not None and block.kind == graph.groups[block.source].kind
