"""The parameter graph of Lim et al. 2024 (Graph Metanetworks),
made from the neural graph of Kofinas et al. 2024.

Every parameter is an edge, told apart by its kind. The positions of a kernel are
parallel edges. The bias of a layer is a node with an edge to each of its neurons, and
so are the scale and the shift of a norm ("gamma" and "beta"), the slope of a parametric
activation and any other parameter that works on neurons: one node for each parameter,
with an edge for each of its elements (parallel ones where a neuron has several, by
position). A parameter that is used twice is still one node, so that weights that are
shared stay shared.

A norm acts on the neurons that are there. The neural graph has nodes of their own
behind it, and these are merged with those before it wherever the kinds of all edges
still say on which side of the norm they are: else the merged graph would have
automorphisms that are no symmetries of the network. Where they do not say it (see
`Scale`), the nodes behind the norm stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from itertools import product

from ngopt.graph.connectivity import components, relative_depths
from ngopt.graph.groups_and_blocks import Bias, EdgeBlock, Index, NeuronGroup, View
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.views.parameter_graph_labels import layers

SCALES = ("gamma", "scale")


def parameter_graph(graph: NeuralGraph) -> NeuralGraph:
    """The parameter graph (Lim et al. 2024) of a network,
    given its neural graph from `build_graph`.

    It has the same parameters, so that `gather` and `scatter` take and give the same
    values; all of them on edges with one slot, none on nodes. Roles stay as they are;
    nodes of parameters count as inputs and are as deep as the neurons that they work
    on.
    """
    return _built(graph).build()


def neuron_places(graph: NeuralGraph) -> list[tuple[int, Index]]:
    """Where the neurons of every group of a neural graph are in its parameter graph.

    Returns the group there, and which of its neurons these are. Groups on both sides of
    a norm may be in one place.
    """
    builder = _built(graph)
    return [builder.end(group, None) for group in range(len(graph.groups))]


def _built(graph: NeuralGraph) -> _Builder:
    scales = _place_scales(graph)
    merged = [graph.blocks[i] for i, how in scales.items() if how is Scale.MERGED]
    builder = _Builder(graph, merged)
    for i, block in enumerate(graph.blocks):
        if i in scales:
            builder.add_scale(block, scales[i])
        elif not any(_is_skip(block, scale) for scale in merged):
            builder.add(block)
    for bias in graph.biases:
        builder.add_parameter(bias.view, bias.group, bias.index, bias.kind)
    return builder


# Scales of norms


class Scale(Enum):
    """What becomes of a scale, the diagonal edges from neurons S to neurons T.

    MERGED: T are S; a gamma node leads to S. BEFORE: nothing but this norm follows S,
    which has the gamma node, and edges of value 1 lead to T (two norms that are summed,
    as where a ResNet reduces its maps). BEHIND: nothing but this norm leads to T, which
    has the gamma node, with edges of value 1 from S (two norms of the same neurons, or
    one after the other). DIAGONAL: the scale stays on edges from S to T.
    """

    MERGED = "merged"
    BEFORE = "before"
    BEHIND = "behind"
    DIAGONAL = "diagonal"


def _place_scales(graph: NeuralGraph) -> dict[int, Scale]:
    """For the number of every block that is a scale, what becomes of it,
    from the first to the last layer."""
    layer = layers(graph).tolist()
    placed: dict[int, Scale] = {}
    # groups with a gamma node; at first those of a graph that is a parameter graph
    # already
    scaled = {
        block.target
        for block in graph.blocks
        if block.kind in SCALES and graph.groups[block.source].kind in SCALES
    }
    for i, block in enumerate(graph.blocks):
        if not _is_scale(graph, block):
            continue
        placed[i] = how = _place_of(graph, block, layer, scaled)
        if how in (Scale.MERGED, Scale.BEFORE):
            scaled.add(block.source)
        if how in (Scale.MERGED, Scale.BEHIND):
            scaled.add(block.target)
    return placed


def _place_of(
    graph: NeuralGraph,
    scale: EdgeBlock,
    layer: Sequence[int],
    scaled: set[int],
) -> Scale:
    """scaled: groups that have a node of a scale."""
    if scale.source not in scaled:
        if _can_merge(graph, scale, layer):
            return Scale.MERGED
        leaving = [block for block in graph.blocks if block.source == scale.source]
        onward = [b for b in leaving if graph.groups[b.target].kind != "group"]
        if onward == [scale]:
            return Scale.BEFORE
    is_alone = graph.blocks_into(scale.target) == (scale,)
    return Scale.BEHIND if is_alone else Scale.DIAGONAL


def _is_scale(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block is scales, one for each neuron, that lead to other neurons,
    and no node stands for them yet."""
    return (
        block.kind in SCALES
        and block.shape[1:] == (1, 1)
        and graph.groups[block.source].kind not in SCALES
    )


def _can_merge(graph: NeuralGraph, scale: EdgeBlock, layer: Sequence[int]) -> bool:
    """Whether the kinds of edges tell what lies before a norm from what lies behind it
    when its ends are merged."""
    if not _can_be_one_group(graph, scale):
        return False
    others = _beside(graph, scale)
    coming = [block for block in others if block.target == scale.target]
    if any(layer[block.source] >= layer[scale.source] for block in coming):
        return False  # merging might make a cycle
    before = _kinds_at(scale.source, others, graph.biases)
    if any(("out", kind) in before for kind in SCALES):
        return False  # another norm of the same neurons
    return before.isdisjoint(_kinds_at(scale.target, others, graph.biases))


def _can_be_one_group(graph: NeuralGraph, scale: EdgeBlock) -> bool:
    """Whether all neurons of two groups meet, and not inputs with outputs."""
    ends = (graph.groups[scale.source], graph.groups[scale.target])
    is_input = any(group.role == "input" for group in ends)
    is_output = any(group.role == "output" or group.is_pinned for group in ends)
    are_whole = all(group.size == scale.shape[0] for group in ends)
    return are_whole and not (is_input and is_output)


def _beside(graph: NeuralGraph, scale: EdgeBlock) -> list[EdgeBlock]:
    """The blocks that are no part of a norm, as its scale, edges past it, and those
    from the nodes of a GroupNorm's groups are."""
    others = [b for b in graph.blocks if b is not scale and not _is_skip(b, scale)]
    own = _group_nodes(graph, others, scale.source)
    return [b for b in others if b.target != scale.target or b.source not in own]


def _group_nodes(
    graph: NeuralGraph, blocks: Sequence[EdgeBlock], source: int
) -> set[int]:
    """The nodes of a GroupNorm's groups that neurons lead to."""
    reached = {block.target for block in blocks if block.source == source}
    return {group for group in reached if graph.groups[group].kind == "group"}


def _kinds_at(
    group: int,
    blocks: Sequence[EdgeBlock],
    biases: Sequence[Bias],
) -> set[tuple[str, str]]:
    """The kinds of edges out of a group and into it, and of its features."""
    out = {("out", block.kind) for block in blocks if block.source == group}
    into = {("into", block.kind) for block in blocks if block.target == group}
    features = {("feature", bias.kind) for bias in biases if bias.group == group}
    return out | into | features


def _is_skip(block: EdgeBlock, scale: EdgeBlock) -> bool:
    """Whether a block is edges of value 1 past a norm,
    from the neurons before it to the same ones behind it."""
    ends = (scale.source, scale.target, scale.shape)
    if block.view is not None or (block.source, block.target, block.shape) != ends:
        return False
    return set(_pairs(block)) == set(_pairs(scale))


def _pairs(block: EdgeBlock) -> Iterator[tuple[int, int]]:
    """Source and target of every edge from one to one."""
    every = range(block.shape[0])
    return zip(block.source_index or every, block.target_index or every, strict=True)


# Construction


def _merged_places(
    scales: Sequence[EdgeBlock],
) -> dict[int, tuple[int, tuple[int, ...]]]:
    """For each group that is merged: the one before it, and which of its neurons each
    is."""
    found = {}
    for scale in scales:
        place = {target: source for source, target in _pairs(scale)}
        neurons = tuple(place[k] for k in range(scale.shape[0]))
        found[scale.target] = (scale.source, neurons)
    return found


class _Builder:
    """Collects the blocks of a parameter graph, with the ends of the neural graph's,
    and its groups."""

    def __init__(self, graph: NeuralGraph, merged: Sequence[EdgeBlock]):
        self.graph = graph
        self.blocks: list[EdgeBlock] = []
        self.merged = _merged_places(merged)
        kept = [i for i in range(len(graph.groups)) if i not in self.merged]
        self.number = {old: new for new, old in enumerate(kept)}
        self.groups = [graph.groups[i] for i in kept]
        for behind, (before, _) in self.merged.items():
            new = self.number[before]
            self.groups[new] = _joined(self.groups[new], graph.groups[behind])
        self.nodes: dict[tuple[int, str], int] = {}  # of parameters

    def end(self, group: int, index: Index) -> tuple[int, Index]:
        """Where neurons of a group of the neural graph are now."""
        if group in self.merged:
            group, place = self.merged[group]
            index = place if index is None else tuple(place[k] for k in index)
            if index == tuple(range(self.graph.groups[group].size)):
                index = None
        return self.number[group], index

    def add(self, block: EdgeBlock) -> None:
        source, source_index = self.end(block.source, block.source_index)
        target, target_index = self.end(block.target, block.target_index)
        moved = replace(
            block,
            source=source,
            target=target,
            source_index=source_index,
            target_index=target_index,
        )
        self.blocks += _single_slots(moved)

    def add_scale(self, block: EdgeBlock, how: Scale) -> None:
        if how is Scale.DIAGONAL:
            self.add(block)
            return
        assert block.view is not None
        n, _, _, *slots = block.view.shape
        stride, _, _, *rest = block.view.strides
        view = replace(block.view, shape=(n, *slots), strides=(stride, *rest))
        if how is Scale.BEHIND:
            self.add_parameter(view, block.target, block.target_index, block.kind)
        else:
            self.add_parameter(view, block.source, block.source_index, block.kind)
        if how is not Scale.MERGED:
            self.add(replace(block, view=None, slot_shape=(), kind="residual"))

    def add_parameter(self, view: View, group: int, index: Index, kind: str) -> None:
        """Edges to neurons from the node that stands for a parameter; view: (n,
        *slot_shape)."""
        key = (view.parameter, kind)
        if key not in self.nodes:
            self.nodes[key] = len(self.groups)
            name = self.graph.parameters[view.parameter].name
            self.groups.append(NeuronGroup(name, 1, kind, "input"))
        target, target_index = self.end(group, index)
        n, *slots = view.shape
        stride, *rest = view.strides
        block = EdgeBlock(
            replace(view, shape=(1, n, 1, *slots), strides=(0, stride, 0, *rest)),
            self.nodes[key],
            target,
            shape=(1, n, 1),
            slot_shape=tuple(slots),
            kind=kind,
            target_index=target_index,
        )
        self.blocks += _single_slots(block)

    def build(self) -> NeuralGraph:
        old = self.graph
        groups = tuple(self.groups)
        blocks = tuple(self.blocks)
        graph = NeuralGraph(old.parameters, groups, blocks, (), old.unplaced)
        depths = relative_depths(layers(graph).tolist(), components(graph))
        placed = [
            replace(group, depth=d) for group, d in zip(groups, depths, strict=True)
        ]
        return replace(graph, groups=tuple(placed))


def _joined(before: NeuronGroup, behind: NeuronGroup) -> NeuronGroup:
    """The group that the neurons on both sides of a norm become."""
    roles = {before.role, behind.role} - {"hidden"}
    return replace(
        before,
        role=roles.pop() if roles else "hidden",
        activation=behind.activation or before.activation,
        symmetry=None,
        is_pinned=before.is_pinned or behind.is_pinned,
    )


def _single_slots(block: EdgeBlock) -> Iterator[EdgeBlock]:
    """A block for every slot, its kernel position on it."""
    view = block.view
    if view is None or not block.slot_shape:
        yield block
        return
    for position in product(*(range(n) for n in block.slot_shape)):
        along = zip(position, view.strides[3:], strict=True)
        offset = view.offset + sum(k * stride for k, stride in along)
        piece = View(view.parameter, view.shape[:3], view.strides[:3], offset)
        yield replace(block, view=piece, slot_shape=(), position=position)
