"""Many different small networks as one graph of few blocks, for a `GraphNetwork`.

In small networks a call takes longer than what it computes. Here blocks of one shape
and kind, of all networks, are groups of edges of one block, and all nodes are one
group, so that one call computes for all networks. Results are those of each network
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
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
        """The indices of several copies. nodes, elements: the first number of each
        copy, (count,)."""
        numbers, positions = self.elements, self.positions
        return BlockIndices(
            ends=tuple(_shifted(end, nodes) for end in self.ends),
            elements=None if numbers is None else _shifted(numbers, elements),
            positions=None if positions is None else positions.repeat(len(nodes), 1),
        )

    @classmethod
    def concatenated(cls, several: "Sequence[BlockIndices]") -> "BlockIndices":
        """The indices of several blocks of one kind."""
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

    kinds, activations: codes of all nodes, (n,). positions: features of the nodes'
    positions, (n, features). numel: number of flat parameters.
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

    tensors: the graph of all networks. weights, biases: numbers of the flat parameters
    of each of its weights and biases, see `BlockIndices`.
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
    starts = node_starts(graph)
    by_kind: dict[BlockKind, list[BlockIndices]] = {}
    of_weights = iter(numbers.edges)
    for block in graph.blocks:
        g, t, s = block.shape
        target = _nodes(starts[block.target], block.target_index, g, t)
        source = _nodes(starts[block.source], block.source_index, g, s)
        positions = node_features.slot_positions(block, like)
        indices = BlockIndices(
            ends=(target.to(device), source.to(device)),
            elements=None if block.view is None else next(of_weights),
            positions=None if positions is None else positions.expand(g, -1),
        )
        kind = BlockKind(
            shape=(t, s),
            slot_shape=block.slot_shape,
            kind=block.kind,
            has_elements=block.view is not None,
            has_positions=positions is not None,
        )
        by_kind.setdefault(kind, []).append(indices)
    for bias, elements in zip(graph.biases, numbers.biases, strict=True):
        nodes = _nodes(starts[bias.group], bias.index, len(elements)).to(device)
        kind = BlockKind((), bias.slot_shape, bias.kind)
        by_kind.setdefault(kind, []).append(BlockIndices((nodes,), elements))
    sizes = [group.size for group in graph.groups]
    of_groups = node_features.node_positions(graph, like)
    positions = [
        position.expand(size, -1)
        for position, size in zip(of_groups, sizes, strict=True)
    ]
    repeats = torch.tensor(sizes, device=device)
    kinds, activations = node_features.node_codes(graph, device)
    return NetworkLayout(
        indices=_concatenated(by_kind),
        kinds=kinds.repeat_interleave(repeats),
        activations=activations.repeat_interleave(repeats),
        positions=torch.cat(positions),
        numel=graph.numel,
    )


def _nodes(start: int, index: Index, *shape: int) -> Tensor:
    """Numbers of the nodes of a block or bias in a group that begins at `start`."""
    within = torch.arange(prod(shape)) if index is None else torch.tensor(index)
    return (start + within).reshape(shape)


def mixture_of(layouts: Sequence[tuple[NetworkLayout, int]], kernel: Kernel) -> Mixture:
    """Copies of several networks, one after the other.

    layouts: with the numbers of copies. kernel: of the metanet, see `kernel_tiles`.
    """
    by_kind: dict[BlockKind, list[BlockIndices]] = {}  # by first occurrence
    nodes = elements = 0
    for layout, count in layouts:
        copies = torch.arange(count)
        starts = nodes + layout.nodes * copies, elements + layout.numel * copies
        for kind, indices in layout.indices.items():
            by_kind.setdefault(kind, []).append(indices.repeated(*starts))
        nodes += layout.nodes * count
        elements += layout.numel * count
    all_indices = _concatenated(by_kind)
    edges = {kind: each for kind, each in all_indices.items() if kind.shape}
    biases = {kind: each for kind, each in all_indices.items() if not kind.shape}
    # weights come before edges of value 1, as in `GraphTensors`
    order = sorted(edges, key=lambda kind: not kind.has_elements)
    blocks = [
        _block(number, kind, edges[kind], kernel) for number, kind in enumerate(order)
    ]
    weights = [edges[kind].elements for kind in order if kind.has_elements]
    networks = [layout for layout, count in layouts for _ in range(count)]
    kinds = torch.cat([network.kinds for network in networks])
    activations = torch.cat([network.activations for network in networks])
    sizes = torch.tensor([network.nodes for network in networks])
    graph_ids = torch.arange(len(networks)).repeat_interleave(sizes)
    tensors = GraphTensors(
        graph=_graph(blocks, biases, nodes),
        blocks=tuple(blocks),
        bias_index=tuple(bias.ends[0] for bias in biases.values()),
        positions=(torch.cat([network.positions for network in networks]),),
        kinds=kinds.unsqueeze(0),
        activations=activations.unsqueeze(0),
        graph_ids=graph_ids.to(kinds.device),
        uses=(),
    )
    return Mixture(tensors, weights, [bias.elements for bias in biases.values()])


def _concatenated(
    by_kind: dict[BlockKind, list[BlockIndices]],
) -> dict[BlockKind, BlockIndices]:
    return {kind: BlockIndices.concatenated(each) for kind, each in by_kind.items()}


def _block(
    number: int, kind: BlockKind, indices: BlockIndices, kernel: Kernel
) -> BlockTensors:
    (targets, sources), (t, s) = indices.ends, kind.shape
    shape = len(targets), t, s
    elements = (*shape, *kind.slot_shape)
    view = View.whole(number, elements) if kind.has_elements else None
    block = EdgeBlock(view, 0, 0, shape, kind.slot_shape, kind.kind)
    slices = (slice(0, n) for n in shape)
    chunk = graph_tensors.EdgeChunk(number, 0, *slices, view=view)
    return BlockTensors(
        block=block,
        number=number,
        tiles=len(graph_tensors.kernel_tiles(kind.slot_shape, kernel)),
        chunks=(chunk,),
        target=targets.flatten(),
        source=sources.flatten(),
        positions=indices.positions,
    )


def _graph(
    blocks: Sequence[BlockTensors], biases: dict[BlockKind, BlockIndices], nodes: int
) -> NeuralGraph:
    """The graph of the mixture: each of its weights and biases is one parameter."""
    weights = [tensors.block for tensors in blocks]
    views = [block.view for block in weights if block.view is not None]
    all_biases = []
    for kind, indices in biases.items():
        view = View.whole(len(views), (len(indices.ends[0]), *kind.slot_shape))
        views.append(view)
        all_biases.append(Bias(view, 0, kind.slot_shape, kind.kind))
    specs = tuple(ParameterSpec(str(view.parameter), view.shape) for view in views)
    groups = (NeuronGroup("all", nodes),)
    return NeuralGraph(specs, groups, tuple(weights), tuple(all_biases))


def _shifted(numbers: Tensor, starts: Tensor) -> Tensor:
    """Copies of numbers along the first axis, each plus its start."""
    shift = starts.to(numbers).view(-1, *[1] * numbers.dim())
    return (numbers + shift).flatten(0, 1)
