"""A neural graph in parts that fit a cache: what a metanet computes with at once.

A part is some edges of one block: some of its groups, or some targets and some sources
of one group. Everything here depends on the graph alone, and is made once for many
steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ngopt.graph.core import (
    Bias,
    EdgeBlock,
    Index,
    NeuralGraph,
    View,
)
from ngopt.metanets.graph_data.kernel_tiles import kernel_tiles
from ngopt.metanets.graph_data.node_features import (
    activation_codes,
    kind_codes,
    node_positions,
    slot_positions,
)

GraphIds = tuple[int, ...] | Tensor
"""Which of several graphs every group is of, or, where they are one group, every node,
(n,)."""


class EdgeChunk(NamedTuple):
    """Some edges of a block.

    view: theirs, of the parameter; None for edges of value 1. is_whole: whether they
    are all of the parameter, in its own order.
    """

    groups: slice
    targets: slice
    sources: slice
    view: View | None
    is_whole: bool

    def of(self, edges: Tensor) -> Tensor:
        """Those of all edges of the block, (*batch, groups, n_target, n_source, *)."""
        return edges[..., self.groups, self.targets, self.sources, :, :]


@dataclass(frozen=True, eq=False)
class BlockTensors:
    """A block with its parts.

    number: among those of the weights, then of the constants. tiles: of an edge,
    see `kernel_tiles`.
    target, source: the neurons that it names, (n,) int64; None for all of the group.
    positions: in a parameter graph, of the slots in their kernels, see
    `slot_positions`, (1, d) or one for each group of edges; None elsewhere.
    """

    block: EdgeBlock
    number: int
    tiles: int
    parts: tuple[EdgeChunk, ...]
    target: Tensor | None
    source: Tensor | None
    positions: Tensor | None = None


@dataclass(frozen=True, eq=False)
class GraphTensors:
    """A graph with what metanets derive from it, on one device.

    blocks: weights, then constants. bias_index: of every bias the neurons that it
    names, or None.
    positions: see `node_positions`. kinds, activations: codes of every group,
    (groups,); of the one group of a mixture (1, n), of its nodes. uses: of every
    parameter how often its elements are placed, 1 or (numel, 1) int16.
    """

    graph: NeuralGraph
    blocks: tuple[BlockTensors, ...]
    bias_index: tuple[Tensor | None, ...]
    positions: tuple[Tensor, ...]
    kinds: Tensor
    activations: Tensor
    members: GraphIds
    uses: tuple[Literal[1] | Tensor, ...]

    @property
    def weights(self) -> tuple[BlockTensors, ...]:
        return self.blocks[: len(self.graph.weights)]

    @property
    def edges(self) -> int:
        """Their number, each of several tiles as many."""
        return sum(prod(parts.block.shape) * parts.tiles for parts in self.blocks)

    @cached_property
    def node_graph_ids(self) -> tuple[Tensor, ...]:
        """Of the nodes of every group which graph they are of, (n,) each."""
        if isinstance(self.members, Tensor):
            return (self.members,)
        sizes = [group.size for group in self.graph.groups]
        return tuple(
            torch.full((size,), member, device=self.kinds.device)
            for size, member in zip(sizes, self.members, strict=True)
        )

    @cached_property
    def target_graph_ids(self) -> tuple[Tensor, ...]:
        """Of the targets that every block names which graph they are of, (n,) each."""
        found = []
        for parts in self.blocks:
            own = self.node_graph_ids[parts.block.target]
            found.append(own if parts.target is None else own[parts.target])
        return tuple(found)

    @cached_property
    def node_counts(self) -> Tensor:
        """Nodes of every graph, (graphs, 1)."""
        members = torch.cat(self.node_graph_ids)
        return torch.bincount(members).unsqueeze(1)

    @cached_property
    def edge_counts(self) -> Tensor:
        """Edges of every graph, (graphs, 1)."""
        count = torch.zeros_like(self.node_counts)
        for parts, own in zip(self.blocks, self.target_graph_ids, strict=True):
            each = parts.block.shape[2] * parts.tiles
            count.index_add_(0, own, torch.full_like(own, each)[:, None])
        return count


def graph_tensors(
    graph: NeuralGraph,
    kernel: tuple[int, int],
    like: Tensor,
    limit: int | None = None,
) -> GraphTensors:
    """The parts of a graph.

    kernel: of the metanet, see `kernel_tiles`. like: of its dtype and on its device.
    limit: edges
        in a part, where a cut can make it so; None for whole blocks.
    """
    blocks = (*graph.weights, *graph.constants)
    device = like.device
    return GraphTensors(
        graph,
        tuple(
            _block_parts(graph, b, i, kernel, like, limit) for i, b in enumerate(blocks)
        ),
        tuple(_index(bias.index, device) for bias in graph.biases),
        tuple(node_positions(graph, like)),
        kind_codes(graph, device),
        activation_codes(graph, device),
        graph.membership,
        tuple(_uses(graph, device)),
    )


def _block_parts(
    graph: NeuralGraph,
    block: EdgeBlock,
    number: int,
    kernel: tuple[int, int],
    like: Tensor,
    limit: int | None,
) -> BlockTensors:
    tiles = len(kernel_tiles(block.slot_shape, kernel))
    cuts = edge_cuts(block.shape, None if limit is None else max(1, limit // tiles))
    views = [(cut, _narrowed(block.view, cut)) for cut in cuts]
    parts = tuple(EdgeChunk(*cut, view, _is_whole(view, graph)) for cut, view in views)
    target = _index(block.target_index, like.device)
    source = _index(block.source_index, like.device)
    positions = slot_positions(block, like)
    return BlockTensors(block, number, tiles, parts, target, source, positions)


def edge_cuts(
    shape: tuple[int, int, int],
    limit: int | None,
) -> Iterator[tuple[slice, slice, slice]]:
    """Pieces (groups, targets, sources) of at most so many edges, near to square."""
    groups, targets, sources = shape
    if limit is None or groups * targets * sources <= limit:
        yield slice(0, groups), slice(0, targets), slice(0, sources)
        return
    if targets * sources <= limit:
        for group in even_slices(groups, limit // (targets * sources)):
            yield group, slice(0, targets), slice(0, sources)
        return
    rows = min(targets, max(isqrt(limit), limit // sources))
    columns = max(1, limit // rows)
    for group in even_slices(groups, 1):
        for target in even_slices(targets, rows):
            for source in even_slices(sources, columns):
                yield group, target, source


def even_slices(length: int, step: int) -> Iterator[slice]:
    """Pieces of at most `step`, of nearly equal lengths."""
    count = -(-length // step)
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)


def _narrowed(view: View | None, cut: Sequence[slice]) -> View | None:
    if view is None:
        return None
    lengths = [piece.stop - piece.start for piece in cut]
    starts = (s * piece.start for s, piece in zip(view.strides, cut, strict=False))
    shape = (*lengths, *view.shape[3:])
    return View(view.parameter, shape, view.strides, view.offset + sum(starts))


def _is_whole(view: View | None, graph: NeuralGraph) -> bool:
    return view is not None and view.is_whole(graph.parameters[view.parameter])


def _index(index: Index, device: torch.device) -> Tensor | None:
    return None if index is None else torch.tensor(index, device=device)


def _uses(graph: NeuralGraph, device: torch.device) -> Iterator[Literal[1] | Tensor]:
    views: list[list[View]] = [[] for _ in graph.parameters]
    places: tuple[Bias | EdgeBlock, ...] = (*graph.biases, *graph.weights)
    for place in places:
        assert place.view is not None
        views[place.view.parameter].append(place.view)
    for spec, some in zip(graph.parameters, views, strict=True):
        used = sum(view.numel for view in some)
        if len(some) == 1 or used == prod(spec.shape):
            yield 1  # every element has a place
            continue
        counts = torch.zeros(1, spec.numel, 1, dtype=torch.int16, device=device)
        for view in some:
            view.write(counts, view.read(counts) + 1)
        yield counts[0]
