"""A neural graph as tensors of one device, its edges in chunks that fit a cache.

Everything here depends on the graph alone, and is made once for many steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ngopt.chunking import block_slices
from ngopt.graph.groups_and_blocks import EdgeBlock, Index, View
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.metanets.graph_data import node_features

Kernel = tuple[int, int]
"""The largest (height, width) of a kernel on one edge."""

GraphIds = tuple[int, ...] | Tensor
"""Number of the graph of every group; in a mixture, of every node, (n,)."""


class EdgeChunk(NamedTuple):
    """Edges of one block: some groups of edges, or some targets and sources of one.

    block, number: of the block in the graph, and of the chunk in the block. view: of
    the parameter; None for edges of value 1.
    """

    block: int
    number: int
    groups: slice
    targets: slice
    sources: slice
    view: View | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, targets and sources."""
        g, t, s = self.groups, self.targets, self.sources
        return g.stop - g.start, t.stop - t.start, s.stop - s.start

    def of(self, edges: Tensor) -> Tensor:
        """This chunk of the block's values, (*batch, groups, n_target, n_source, *)."""
        return edges[..., self.groups, self.targets, self.sources, :, :]


Contexts = Iterator[tuple[int | EdgeChunk, Tensor]]
"""Features of places: of biases, by number, and of chunks of weights."""


@dataclass(frozen=True, eq=False)
class BlockTensors:
    """A block of edges in chunks.

    number: weights come first, then constants. tiles: of an edge, see `kernel_tiles`.
    target, source: neurons of the group, (n,) int64; None for all of them. positions:
    in a parameter graph, of the slots in their kernels, see `slot_positions`, (1, d) or
    one for each group of edges; None elsewhere.
    """

    block: EdgeBlock
    number: int
    tiles: int
    chunks: tuple[EdgeChunk, ...]
    target: Tensor | None
    source: Tensor | None
    positions: Tensor | None = None


@dataclass(frozen=True, eq=False)
class GraphTensors:
    """What graph networks read of a graph, on one device.

    blocks: weights, then constants. bias_index: neurons of every bias in its group, or
    None for all. positions: see `node_positions`. kinds, activations: codes of every
    group, (groups,); in a mixture of every node, (1, n). uses: of every parameter how
    often its elements are placed, 1 or (numel, 1) int16.
    """

    graph: NeuralGraph
    blocks: tuple[BlockTensors, ...]
    bias_index: tuple[Tensor | None, ...]
    positions: tuple[Tensor, ...]
    kinds: Tensor
    activations: Tensor
    graph_ids: GraphIds
    uses: tuple[Literal[1] | Tensor, ...]

    @property
    def weights(self) -> tuple[BlockTensors, ...]:
        return self.blocks[: len(self.graph.weights)]

    @property
    def edges(self) -> int:
        """Number of edges; one of several tiles counts as often."""
        return sum(prod(b.block.shape) * b.tiles for b in self.blocks)

    @cached_property
    def node_graph_ids(self) -> tuple[Tensor, ...]:
        """Graph of every node of every group, (n,) each."""
        if isinstance(self.graph_ids, Tensor):
            return (self.graph_ids,)
        ids = []
        for group, number in zip(self.graph.groups, self.graph_ids, strict=True):
            ids.append(torch.full((group.size,), number, device=self.kinds.device))
        return tuple(ids)

    @cached_property
    def target_graph_ids(self) -> tuple[Tensor, ...]:
        """Graph of every target of every block, (n,) each."""
        ids = []
        for block in self.blocks:
            of_group = self.node_graph_ids[block.block.target]
            ids.append(of_group if block.target is None else of_group[block.target])
        return tuple(ids)

    @cached_property
    def node_counts(self) -> Tensor:
        """Nodes of every graph, (graphs, 1)."""
        return torch.bincount(torch.cat(self.node_graph_ids)).unsqueeze(1)

    @cached_property
    def edge_counts(self) -> Tensor:
        """Edges of every graph, (graphs, 1)."""
        count = torch.zeros_like(self.node_counts)
        for block, ids in zip(self.blocks, self.target_graph_ids, strict=True):
            per_target = torch.full_like(ids, block.block.shape[2] * block.tiles)
            count.index_add_(0, ids, per_target.unsqueeze(1))
        return count


def graph_tensors(
    graph: NeuralGraph, kernel: Kernel, like: Tensor, limit: int | None = None
) -> GraphTensors:
    """The tensors of a graph.

    kernel: of the metanet, see `kernel_tiles`. like: of its dtype and on its device.
    limit: edges in a chunk, where slices allow it; None for whole blocks.
    """
    device = like.device
    blocks = enumerate((*graph.weights, *graph.constants))
    kinds, activations = node_features.node_codes(graph, device)
    return GraphTensors(
        graph=graph,
        blocks=tuple(_block_tensors(x, i, kernel, like, limit) for i, x in blocks),
        bias_index=tuple(_index(bias.index, device) for bias in graph.biases),
        positions=tuple(node_features.node_positions(graph, like)),
        kinds=kinds,
        activations=activations,
        graph_ids=graph.membership,
        uses=tuple(_uses(graph, device)),
    )


def _block_tensors(
    block: EdgeBlock, number: int, kernel: Kernel, like: Tensor, limit: int | None
) -> BlockTensors:
    tiles = len(kernel_tiles(block.slot_shape, kernel))
    if limit is not None:
        limit = max(1, limit // tiles)
    chunks = []
    for i, slices in enumerate(block_slices(block.shape, limit)):
        view = block.view
        if view is not None:
            offset = view.offset
            lengths = []
            for stride, piece in zip(view.strides, slices, strict=False):
                lengths.append(piece.stop - piece.start)
                offset += stride * piece.start
            shape = (*lengths, *view.shape[3:])
            view = View(view.parameter, shape, view.strides, offset)
        chunks.append(EdgeChunk(number, i, *slices, view))
    return BlockTensors(
        block=block,
        number=number,
        tiles=tiles,
        chunks=tuple(chunks),
        target=_index(block.target_index, like.device),
        source=_index(block.source_index, like.device),
        positions=node_features.slot_positions(block, like),
    )


def _index(index: Index, device: torch.device) -> Tensor | None:
    return None if index is None else torch.tensor(index, device=device)


def _uses(graph: NeuralGraph, device: torch.device) -> Iterator[Literal[1] | Tensor]:
    """See `GraphTensors`."""
    for spec, views in zip(graph.parameters, graph.views, strict=True):
        if len(views) == 1 or sum(view.numel for view in views) == spec.numel:
            yield 1  # every element is placed once
            continue
        counts = torch.zeros(1, spec.numel, 1, dtype=torch.int16, device=device)
        for view in views:
            view.write(counts, view.read(counts) + 1)
        yield counts[0]


class Tile(NamedTuple):
    """Slots of an edge: slots[k] is position positions[k] in a metanet's kernel."""

    slots: tuple[int, ...]
    positions: tuple[int, ...]


@lru_cache(maxsize=4096)
def kernel_tiles(slot_shape: tuple[int, ...], kernel: Kernel) -> tuple[Tile, ...]:
    """Cuts the slots of an edge into tiles, from the first corner on;
    each becomes an edge of its own.

    slot_shape: spatial shape of the edge's slots. kernel: largest (height, width) of
    the metanet. Tiles that are smaller than the kernel lie in its centre (Kofinas et
    al. 2024, section 2.2). A one-dimensional kernel is cut into runs of height * width
    slots, a three-dimensional one into planes.
    """
    shape = slot_shape or (1, 1)
    space = (prod(kernel),) if len(shape) == 1 else kernel
    sizes = (1,) * (len(shape) - len(space)) + space
    ranges_of_axes = []
    for length, size in zip(shape, sizes, strict=True):
        starts = range(0, max(length, 1), size)  # of no slots one empty tile
        ranges_of_axes.append([range(i, min(i + size, length)) for i in starts])
    tiles = []
    for box in product(*ranges_of_axes):
        centre = []
        for length, side in zip(space, box[-len(space) :], strict=True):
            start = (length - len(side)) // 2
            centre.append(range(start, start + len(side)))
        tiles.append(Tile(_flat_indices(shape, box), _flat_indices(space, centre)))
    return tuple(tiles)


def _flat_indices(shape: Sequence[int], box: Sequence[range]) -> tuple[int, ...]:
    """Indices of a box in a flattened array; compiled steps allow no numpy here."""
    indices = [0]
    for length, numbers in zip(shape, box, strict=True):
        indices = [i * length + number for i in indices for number in numbers]
    return tuple(indices)
