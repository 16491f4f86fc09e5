"""The parameter graph of Lim et al. 2024 (Graph Metanetworks),
made from the neural graph of Kofinas et al. 2024.

Every parameter is an edge, told apart by its kind. The positions of a kernel are parallel edges.
The bias of a layer is a node with an edge to each of its neurons, and so are the scale and the
shift of a norm ("gamma" and "beta"), the slope of a parametric activation and any other parameter
that works on neurons: one node for each parameter, with an edge for each of its elements (parallel
ones where a neuron has several, by position). A parameter that is used twice is still one node, so
that weights that are shared stay shared.

A norm acts on the neurons that are there. The neural graph has nodes of their own behind it, and
these are merged with those before it wherever the kinds of all edges still say on which side of the
norm they are: else the merged graph would have automorphisms that are no symmetries of the network.
Where they do not say it (see `Scale`), the nodes behind the norm stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from itertools import product

import torch
from torch import Tensor

from ngopt.graph.core import (
    EDGE_KINDS,
    NODE_KINDS,
    EdgeBlock,
    Index,
    NeuralGraph,
    NeuronGroup,
    View,
    kind_code,
)
from ngopt.graph.topology import components, longest_paths, relative_depths

SCALES = ("gamma", "scale")
KERNEL_DIMS = 3


def parameter_graph(graph: NeuralGraph) -> NeuralGraph:
    """The parameter graph (Lim et al. 2024) of a network,
    given its neural graph from `build_graph`.

    It has the same parameters, so that `gather` and `scatter` take and give the same values; all of
    them on edges with one slot, none on nodes. Roles stay as they are; nodes of parameters count as
    inputs and are as deep as the neurons that they work on.
    """
    scales = _place_scales(graph)
    builder = _Builder(graph, scales)
    for i, block in enumerate(graph.blocks):
        if i in scales:
            builder.add_scale(block, scales[i])
        elif not any(
            how is Scale.MERGED and _is_skip(block, graph.blocks[k]) for k, how in scales.items()
        ):
            builder.add(block)
    for bias in graph.biases:
        builder.add_parameter(bias.view, bias.group, bias.index, bias.kind)
    return builder.build()


# Scales of norms


class Scale(Enum):
    """What becomes of a scale, the diagonal edges from neurons S to neurons T.

    MERGED: T are S; a gamma node leads to S. BEFORE: nothing but this norm follows S, which has the
    gamma node, and edges of value 1 lead to T (two norms that are summed, as where a ResNet reduces
    its maps). BEHIND: nothing but this norm leads to T, which has the gamma node, with edges of
    value 1 from S (two norms of the same neurons, or one after the other). DIAGONAL: the scale
    stays on edges from S to T.
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
    # groups with a gamma node; at first those of a graph that is a parameter graph already
    scaled = {
        b.target for b in graph.blocks if b.kind in SCALES and graph.groups[b.source].kind in SCALES
    }
    for i, block in enumerate(graph.blocks):
        if not _is_scale(graph, block):
            continue
        leaving = [
            b
            for b in graph.blocks
            if b.source == block.source and graph.groups[b.target].kind != "group"
        ]
        coming = [b for b in graph.blocks if b.target == block.target]
        if block.source not in scaled and _can_merge(graph, block, layer):
            placed[i] = Scale.MERGED
            scaled |= {block.source, block.target}
        elif block.source not in scaled and leaving == [block]:
            placed[i] = Scale.BEFORE
            scaled.add(block.source)
        elif coming == [block]:
            placed[i] = Scale.BEHIND
            scaled.add(block.target)
        else:
            placed[i] = Scale.DIAGONAL
    return placed


def _is_scale(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block is scales, one for each neuron, that lead to other neurons,
    and no node stands for them yet."""
    return (
        block.kind in SCALES
        and block.shape[1:] == (1, 1)
        and graph.groups[block.source].kind not in SCALES
    )


def _can_merge(graph: NeuralGraph, block: EdgeBlock, layer: Sequence[int]) -> bool:
    """Whether the kinds of edges tell what lies before a norm from what lies behind it when its
    ends are merged."""
    before, behind = graph.groups[block.source], graph.groups[block.target]
    if not block.shape[0] == before.size == behind.size:
        return False
    if "input" in (before.role, behind.role) and any(
        g.role == "output" or g.is_pinned for g in (before, behind)
    ):
        return False
    blocks = [b for b in graph.blocks if b is not block and not _is_skip(b, block)]
    own = {  # the nodes of a GroupNorm's groups
        b.source
        for b in blocks
        if b.target == block.target and graph.groups[b.source].kind == "group"
    } & {b.target for b in blocks if b.source == block.source}
    coming = [b for b in blocks if b.target == block.target and b.source not in own]
    if any(layer[b.source] >= layer[block.source] for b in coming):
        return False  # merging might make a cycle
    leaving = {b.kind for b in blocks if b.source == block.source}
    if not leaving.isdisjoint(SCALES):
        return False  # another norm of the same neurons
    return (
        leaving.isdisjoint(b.kind for b in blocks if b.source == block.target)
        and {b.kind for b in coming}.isdisjoint(b.kind for b in blocks if b.target == block.source)
        and {b.kind for b in graph.biases if b.group == block.source}.isdisjoint(
            b.kind for b in graph.biases if b.group == block.target
        )
    )


def _is_skip(block: EdgeBlock, scale: EdgeBlock) -> bool:
    """Whether a block is edges of value 1 past a norm,
    from the neurons before it to the same ones behind it."""
    if block.view is not None or (block.source, block.target, block.shape) != (
        scale.source,
        scale.target,
        scale.shape,
    ):
        return False
    n = scale.shape[0]
    pairs, own = (
        set(zip(b.source_index or range(n), b.target_index or range(n), strict=True))
        for b in (block, scale)
    )
    return pairs == own


# Construction


class _Builder:
    """Collects the blocks of a parameter graph, with the ends of the neural graph's,
    and its groups."""

    def __init__(self, graph: NeuralGraph, scales: dict[int, Scale]):
        self.graph = graph
        self.blocks: list[EdgeBlock] = []
        self.merged: dict[
            int, tuple[int, tuple[int, ...]]
        ] = {}  # to which group, and which neuron each one is
        for i in (i for i, how in scales.items() if how is Scale.MERGED):
            block = graph.blocks[i]
            n = block.shape[0]
            place = dict(
                zip(block.target_index or range(n), block.source_index or range(n), strict=True)
            )
            self.merged[block.target] = (block.source, tuple(place[k] for k in range(n)))
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
        shape, strides = (
            (*x[:1], *x[3:]) for x in (block.view.shape, block.view.strides)
        )  # (n, *slot_shape)
        view = replace(block.view, shape=shape, strides=strides)
        end = (
            (block.target, block.target_index)
            if how is Scale.BEHIND
            else (block.source, block.source_index)
        )
        self.add_parameter(view, *end, block.kind)
        if how is not Scale.MERGED:
            self.add(replace(block, view=None, slot_shape=(), kind="residual"))

    def add_parameter(self, view: View, group: int, index: Index, kind: str) -> None:
        """Edges to neurons from the node that stands for a parameter; view: (n, *slot_shape)."""
        key = (view.parameter, kind)
        if key not in self.nodes:
            self.nodes[key] = len(self.groups)
            self.groups.append(
                NeuronGroup(self.graph.parameters[view.parameter].name, 1, kind, "input")
            )
        target, target_index = self.end(group, index)
        n, *slot_shape = view.shape
        stride, *rest = view.strides
        wide = replace(view, shape=(1, n, 1, *slot_shape), strides=(0, stride, 0, *rest))
        self.blocks += _single_slots(
            EdgeBlock(
                wide,
                self.nodes[key],
                target,
                (1, n, 1),
                tuple(slot_shape),
                kind,
                None,
                target_index,
            )
        )

    def build(self) -> NeuralGraph:
        blocks = tuple(self.blocks)
        graph = NeuralGraph(
            self.graph.parameters, tuple(self.groups), blocks, (), self.graph.unplaced
        )
        depths = relative_depths(layers(graph).tolist(), components(graph))
        groups = [replace(group, depth=d) for group, d in zip(graph.groups, depths, strict=True)]
        return replace(graph, groups=tuple(groups))


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
        offset = view.offset + sum(
            k * stride for k, stride in zip(position, view.strides[3:], strict=True)
        )
        piece = View(view.parameter, view.shape[:3], view.strides[:3], offset)
        yield replace(block, view=piece, slot_shape=(), position=position)


# The paper's features


def node_types(graph: NeuralGraph) -> Tensor:
    """What the nodes of every group are: (groups,) places in `NODE_KINDS` (Lim et al. 2024,
    node type)."""
    return torch.tensor(
        [kind_code(group.kind, NODE_KINDS) for group in graph.groups], dtype=torch.long
    )


def edge_types(graph: NeuralGraph) -> Tensor:
    """What the edges of every block are: (blocks,) places in `EDGE_KINDS` (Lim et al. 2024,
    edge type)."""
    return torch.tensor(
        [kind_code(block.kind, EDGE_KINDS) for block in graph.blocks], dtype=torch.long
    )


def layers(graph: NeuralGraph) -> Tensor:
    """Number of every group's layer, (groups,): the longest path to it,
    0 at inputs (Lim et al. 2024, layer).

    The node of a parameter is of the layer that it works on.
    """
    pooled = {(block.target, block.source) for block in graph.constants}

    def leads_back(block: EdgeBlock) -> bool:
        is_spread = block.kind == "spread" and (block.source, block.target) in pooled
        return is_spread or block.target == block.source

    forward = [b for b in graph.blocks if not leads_back(b) and not _is_parameter_edge(graph, b)]
    layer = longest_paths(len(graph.groups), forward)
    for block in reversed(graph.blocks):
        if _is_parameter_edge(graph, block):
            layer[block.source] = layer[block.target]
    return torch.tensor(layer, dtype=torch.long)


def input_output_index(graph: NeuralGraph) -> tuple[Tensor, Tensor]:
    """Number of every input and of every output neuron among its like,
    -1 for the other nodes (Lim et al. 2024).

    Pinned neurons are numbered among the outputs. Returns two (nodes,),
    the nodes in the order of `to_edge_list`.
    """
    parameters = {b.source for b in graph.blocks if _is_parameter_edge(graph, b)}
    indices = []
    inputs = [group.role == "input" for group in graph.groups]
    outputs = [group.is_fixed and group.role in ("hidden", "output") for group in graph.groups]
    for are_numbered in (inputs, outputs):
        sizes = [
            group.size if is_numbered and group.kind != "parameter" and i not in parameters else 0
            for i, (group, is_numbered) in enumerate(zip(graph.groups, are_numbered, strict=True))
        ]
        pieces = [
            torch.arange(sum(sizes[:i]), sum(sizes[: i + 1]))
            if size
            else torch.full((group.size,), -1)
            for i, (size, group) in enumerate(zip(sizes, graph.groups, strict=True))
        ]
        indices.append(torch.cat(pieces))
    return indices[0], indices[1]


def kernel_positions(graph: NeuralGraph) -> Tensor:
    """Kernel position of every block, (blocks, 3), aligned to the right;
    -1 where a kernel has no such dimension."""
    width = max([KERNEL_DIMS, *(len(block.position) for block in graph.blocks)])
    rows = [[-1] * (width - len(block.position)) + list(block.position) for block in graph.blocks]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, width)


def _is_parameter_edge(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether a block comes from the node of a parameter: its edges are of the node's kind."""
    return block.view is not None and block.kind == graph.groups[block.source].kind
