"""Many different small networks as one graph of few blocks, for a `GraphNetwork`.

In small networks a call takes longer than what it computes. Here blocks of one shape
and kind, of all networks, are groups of edges of one block, and all nodes are one
group, so that one call computes for all networks. Results are those of each network
alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.graph import NeuralGraph, ParameterSpec
from ngopt.graph.groups_and_blocks import Bias, EdgeBlock, Index, NeuronGroup, View
from ngopt.graph.views.edge_list import node_starts
from ngopt.metanets.graph_data import graph_tensors, node_features
from ngopt.metanets.graph_data.graph_tensors import BlockTensors, GraphTensors, Kernel


class BlockKind(NamedTuple):
    """What blocks, or biases, must share to be one block of the mixture.

    shape: (n_target, n_source) of a group of edges, () of biases. has_elements: whether
    edges are parameters; else their value is 1. has_positions: whether edges have a
    place in a kernel.
    """

    shape: tuple[int, ...]
    slot_shape: tuple[int, ...]
    kind: str
    has_elements: bool = True
    has_positions: bool = False


class BlockIndices(NamedTuple):
    """Node and parameter numbers of edges, or of biases.

    ends: numbers of nodes, (groups, n_target) and (groups, n_source); of biases one,
    (n,). elements: numbers of flat parameters, (groups, n_target, n_source, slots), of
    biases (n, slots); None for edges of value 1. positions: see `BlockTensors`,
    (groups, d).
    """

    ends: tuple[Tensor, ...]
    elements: Tensor | None = None
    positions: Tensor | None = None

    def repeated(self, nodes: Tensor, elements: Tensor) -> "BlockIndices":
        """Those of several copies. nodes, elements: the first number of each copy,
        (count,)."""
        copies = self._replace(ends=tuple(_shifted(end, nodes) for end in self.ends))
        if self.elements is not None:
            copies = copies._replace(elements=_shifted(self.elements, elements))
        if self.positions is not None:
            copies = copies._replace(positions=self.positions.repeat(len(nodes), 1))
        return copies

    @classmethod
    def concatenated(cls, several: "Sequence[BlockIndices]") -> "BlockIndices":
        """Of blocks of one kind."""
        columns: Any = zip(*several, strict=True)
        ends, elements, positions = columns
        return cls(
            ends=tuple(map(torch.cat, zip(*ends, strict=True))),
            elements=None if elements[0] is None else torch.cat(elements),
            positions=None if positions[0] is None else torch.cat(positions),
        )


@dataclass(frozen=True, eq=False)
class NetworkLayout:
    """One network, its blocks by kind.

    kinds, activations: codes of all nodes, (n,). positions: theirs, (n, features).
    numel: of the flat parameters.
    """

    indices: dict[BlockKind, BlockIndices]
    kinds: Tensor
    activations: Tensor
    positions: Tensor
    numel: int

    @property
    def nodes(self) -> int:
        return len(self.kinds)


class Mixture(NamedTuple):
    """Several networks, one after the other.

    tensors: of the graph of all. weights, biases: numbers of the flat parameters of
    each of its weights and biases, see `BlockIndices`.
    """

    tensors: GraphTensors
    weights: Sequence[Tensor | None]
    biases: Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class MixedValues:
    """A `FeatureSource` of the parameters of a mixture, (numel, k).

    features: computes features of values when they are read, (*, k) -> (*, d_in).
    """

    values: Tensor
    mixture: Mixture
    features: Callable[[Tensor], Tensor]

    batch = torch.Size()

    def edges(self, chunk: graph_tensors.EdgeChunk) -> Tensor:
        return self._read(self.mixture.weights[chunk.block])

    def bias(self, number: int) -> Tensor:
        return self._read(self.mixture.biases[number])

    def _read(self, elements: Tensor | None) -> Tensor:
        assert elements is not None
        values = self.values.index_select(0, elements.flatten())
        return self.features(values.unflatten(0, elements.shape))


def layout_of(graph: NeuralGraph, like: Tensor) -> NetworkLayout:
    """The layout of one graph. like: of the metanet's dtype and on its device."""
    device = like.device
    elements = torch.arange(graph.numel, device=device)
    numbers = graph.gather(graph.unflatten(elements))
    by_kind: dict[BlockKind, list[BlockIndices]] = {}
    edges = _edges(graph, numbers.edges, like)
    for kind, indices in (*edges, *_biases(graph, numbers.biases)):
        by_kind.setdefault(kind, []).append(indices)
    sizes = [group.size for group in graph.groups]
    positions = []
    of_groups = node_features.node_positions(graph, like)
    for position, size in zip(of_groups, sizes, strict=True):
        positions.append(position.expand(size, -1))
    repeats = torch.tensor(sizes, device=device)
    codes = node_features.node_codes(graph, device)
    kinds, activations = (x.repeat_interleave(repeats) for x in codes)
    return NetworkLayout(
        indices=_concatenated(by_kind),
        kinds=kinds,
        activations=activations,
        positions=torch.cat(positions),
        numel=graph.numel,
    )


def _edges(
    graph: NeuralGraph, numbers: Sequence[Tensor], like: Tensor
) -> Iterator[tuple[BlockKind, BlockIndices]]:
    """numbers: of the flat parameters, on the weights."""
    device = like.device
    weights = iter(numbers)
    starts = node_starts(graph)
    for block in graph.blocks:
        g, t, s = block.shape
        target = _nodes(starts[block.target], block.target_index, g, t)
        source = _nodes(starts[block.source], block.source_index, g, s)
        elements = None if block.view is None else next(weights)
        positions = node_features.slot_positions(block, like)
        if positions is not None:
            positions = positions.expand(g, -1)
        kind = BlockKind(
            shape=(t, s),
            slot_shape=block.slot_shape,
            kind=block.kind,
            has_elements=elements is not None,
            has_positions=positions is not None,
        )
        ends = target.to(device), source.to(device)
        yield kind, BlockIndices(ends, elements, positions)


def _biases(
    graph: NeuralGraph, numbers: Sequence[Tensor]
) -> Iterator[tuple[BlockKind, BlockIndices]]:
    """numbers: of the flat parameters, on the biases."""
    starts = node_starts(graph)
    for bias, elements in zip(graph.biases, numbers, strict=True):
        nodes = _nodes(starts[bias.group], bias.index, len(elements))
        kind = BlockKind((), bias.slot_shape, bias.kind)
        yield kind, BlockIndices((nodes.to(elements.device),), elements)


def _nodes(start: int, index: Index, *shape: int) -> Tensor:
    """Numbers of the nodes of a block or bias in a group that begins at `start`."""
    count = torch.Size(shape).numel()
    within = torch.arange(count) if index is None else torch.tensor(index)
    return (start + within).reshape(shape)


def mixture_of(layouts: Sequence[tuple[NetworkLayout, int]], kernel: Kernel) -> Mixture:
    """Copies of several networks, one after the other.

    layouts: with the numbers of copies. kernel: of the metanet, see `kernel_tiles`.
    """
    edges, biases = {}, {}
    for kind, indices in _all_indices(layouts).items():
        (edges if kind.shape else biases)[kind] = indices
    # weights come before edges of value 1, as in `GraphTensors`
    order = sorted(edges, key=lambda kind: not kind.has_elements)
    blocks, weights = [], []
    for number, kind in enumerate(order):
        blocks.append(_block(number, kind, edges[kind], kernel))
        if kind.has_elements:
            weights.append(edges[kind].elements)
    bias_elements = [indices.elements for indices in biases.values()]
    bias_index = [indices.ends[0] for indices in biases.values()]
    all_kinds, activations, positions, sizes = [], [], [], []
    for layout, count in layouts:
        all_kinds += [layout.kinds] * count
        activations += [layout.activations] * count
        positions += [layout.positions] * count
        sizes += [layout.nodes] * count
    kinds = torch.cat(all_kinds)
    graph_ids = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    tensors = GraphTensors(
        graph=_graph(blocks, biases, len(kinds)),
        blocks=tuple(blocks),
        bias_index=tuple(bias_index),
        positions=(torch.cat(positions),),
        kinds=kinds.unsqueeze(0),
        activations=torch.cat(activations).unsqueeze(0),
        graph_ids=graph_ids.to(kinds.device),
        uses=(),
    )
    return Mixture(tensors, weights, bias_elements)


def _all_indices(
    layouts: Sequence[tuple[NetworkLayout, int]],
) -> dict[BlockKind, BlockIndices]:
    """Those of all networks together, in the order of their first occurrence."""
    by_kind: dict[BlockKind, list[BlockIndices]] = {}
    nodes = elements = 0
    for layout, count in layouts:
        copies = torch.arange(count)
        first_nodes = nodes + layout.nodes * copies
        first_elements = elements + layout.numel * copies
        for kind, indices in layout.indices.items():
            repeated = indices.repeated(first_nodes, first_elements)
            by_kind.setdefault(kind, []).append(repeated)
        nodes += layout.nodes * count
        elements += layout.numel * count
    return _concatenated(by_kind)


def _concatenated(
    by_kind: dict[BlockKind, list[BlockIndices]],
) -> dict[BlockKind, BlockIndices]:
    return {kind: BlockIndices.concatenated(blocks) for kind, blocks in by_kind.items()}


def _block(
    number: int, kind: BlockKind, indices: BlockIndices, kernel: Kernel
) -> BlockTensors:
    (targets, sources), (t, s) = indices.ends, kind.shape
    shape = len(targets), t, s
    view = None
    if kind.has_elements:
        view = View.whole(number, (*shape, *kind.slot_shape))
    block = EdgeBlock(view, 0, 0, shape, kind.slot_shape, kind.kind)
    tiles = len(graph_tensors.kernel_tiles(kind.slot_shape, kernel))
    slices = (slice(0, n) for n in shape)
    chunk = graph_tensors.EdgeChunk(number, 0, *slices, view=view)
    return BlockTensors(
        block=block,
        number=number,
        tiles=tiles,
        chunks=(chunk,),
        target=targets.flatten(),
        source=sources.flatten(),
        positions=indices.positions,
    )


def _graph(
    blocks: Sequence[BlockTensors], biases: dict[BlockKind, BlockIndices], nodes: int
) -> NeuralGraph:
    """The graph of the mixture: each of its weights and biases is one parameter."""
    edge_blocks = tuple(block.block for block in blocks)
    views = [block.view for block in edge_blocks if block.view is not None]
    all_biases = []
    for kind, indices in biases.items():
        shape = len(indices.ends[0]), *kind.slot_shape
        view = View.whole(len(views), shape)
        views.append(view)
        all_biases.append(Bias(view, 0, kind.slot_shape, kind.kind))
    specs = tuple(ParameterSpec(str(view.parameter), view.shape) for view in views)
    groups = (NeuronGroup("all", nodes),)
    return NeuralGraph(specs, groups, edge_blocks, tuple(all_biases))


def _shifted(numbers: Tensor, starts: Tensor) -> Tensor:
    """Copies of numbers along the first axis, each plus its start."""
    axes = [1] * numbers.dim()
    shift = starts.to(numbers).view(-1, *axes)
    return (numbers + shift).flatten(0, 1)
