"""Different small networks as one graph of few blocks, for a `GraphNetwork` that reads
many at once.

Where blocks are small, calls take longer than what they compute. Here blocks of one
shape and kind, of whatever networks, lie side by side as groups of one block, and all
nodes are one group: a call computes for all of them. What is said of a network is what
is said of it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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
from ngopt.graph.views.edge_list import node_starts
from ngopt.metanets.graph_data.graph_tensors import (
    BlockTensors,
    EdgeChunk,
    GraphTensors,
)
from ngopt.metanets.graph_data.kernel_tiles import kernel_tiles
from ngopt.metanets.graph_data.node_features import (
    activation_codes,
    kind_codes,
    node_positions,
    slot_positions,
)


class BlockKind(NamedTuple):
    """What is the same of all that lies side by side.

    shape: (n_target, n_source) of a group of edges, () of biases. has_elements: not
    edges of value
    1. has_positions: edges with a place in a kernel.
    """

    shape: tuple[int, ...]
    slot_shape: tuple[int, ...]
    kind: str
    has_elements: bool = True
    has_positions: bool = False


class BlockIndices(NamedTuple):
    """Where edges, or biases, lie.

    ends: numbers of nodes, (groups, n_target) and (groups, n_source); of biases one,
    (n,).
    elements: numbers of flat parameters, (groups, n_target, n_source, slots), of biases
    (n, slots); None of edges of value 1. positions: see `BlockTensors`, (groups, d).
    """

    ends: tuple[Tensor, ...]
    elements: Tensor | None = None
    positions: Tensor | None = None

    def copied(self, nodes: Tensor, numels: Tensor) -> BlockIndices:
        """Those of several such networks, whose nodes and parameters begin there,
        (count,) each."""
        ends = tuple(_copied(end, nodes) for end in self.ends)
        elements, positions = self.elements, self.positions
        return BlockIndices(
            ends,
            None if elements is None else _copied(elements, numels),
            None if positions is None else positions.repeat(len(nodes), 1),
        )

    @classmethod
    def side_by_side(cls, some: Sequence[BlockIndices]) -> BlockIndices:
        first, columns = some[0], zip(*(one.ends for one in some), strict=True)
        elements = [x.elements for x in some if x.elements is not None]
        positions = [x.positions for x in some if x.positions is not None]
        return cls(
            tuple(torch.cat(column) for column in columns),
            None if first.elements is None else torch.cat(elements),
            None if first.positions is None else torch.cat(positions),
        )


@dataclass(frozen=True, eq=False)
class NetworkLayout:
    """A network with what is alike side by side.

    kinds, activations: codes of all nodes, (n,). positions: theirs, (n, features).
    numel: of the flat parameters.
    """

    places: dict[BlockKind, BlockIndices]
    kinds: Tensor
    activations: Tensor
    positions: Tensor
    numel: int

    @property
    def nodes(self) -> int:
        return len(self.kinds)


class Mixture(NamedTuple):
    """Several networks, one after the other.

    parts: of the graph that they make. weights, biases: of each of its weights and
    biases the numbers of the flat parameters, see `BlockIndices`.
    """

    parts: GraphTensors
    weights: Sequence[Tensor | None]
    biases: Sequence[Tensor | None]


@dataclass(frozen=True, eq=False)
class MixedValues:
    """Values of the parameters of a mixture, (numel, k), as a `FeatureSource`.

    features: what makes features of values where they are read, (*, k) -> (*, d_in).
    """

    values: Tensor
    mixture: Mixture
    features: Callable[[Tensor], Tensor]

    batch = torch.Size()

    def edges(self, parts: BlockTensors, part: EdgeChunk) -> Tensor:
        assert part.is_whole
        return self._read(self.mixture.weights[parts.number])

    def bias(self, number: int) -> Tensor:
        return self._read(self.mixture.biases[number])

    def _read(self, elements: Tensor | None) -> Tensor:
        assert elements is not None
        found = self.values.index_select(0, elements.flatten())
        return self.features(found.unflatten(0, elements.shape))


def layout_of(graph: NeuralGraph, like: Tensor) -> NetworkLayout:
    """That of one graph. like: of the metanet's dtype and on its device."""
    sizes = [group.size for group in graph.groups]
    each = torch.tensor(sizes, device=like.device)
    places: dict[BlockKind, list[BlockIndices]] = {}
    flat = torch.arange(graph.numel, device=like.device)
    numbers = graph.gather(graph.unflatten(flat))
    for key, found in (
        *_edges(graph, numbers.edges, like),
        *_biases(graph, numbers.biases),
    ):
        places.setdefault(key, []).append(found)
    positions = zip(node_positions(graph, like), sizes, strict=True)
    return NetworkLayout(
        {key: BlockIndices.side_by_side(some) for key, some in places.items()},
        kind_codes(graph, like.device).repeat_interleave(each),
        activation_codes(graph, like.device).repeat_interleave(each),
        torch.cat([place.expand(size, -1) for place, size in positions]),
        graph.numel,
    )


def _edges(
    graph: NeuralGraph, numbers: Sequence[Tensor], like: Tensor
) -> Iterator[tuple[BlockKind, BlockIndices]]:
    """numbers: of the flat parameters, on the weights."""
    device, weights = like.device, iter(numbers)
    starts = node_starts(graph)
    for block in graph.blocks:
        g, t, s = block.shape
        target = _nodes(starts[block.target], block.target_index, g, t)
        source = _nodes(starts[block.source], block.source_index, g, s)
        elements = None if block.view is None else next(weights)
        positions = slot_positions(block, like)
        if positions is not None:
            positions = positions.expand(g, -1)
        key = BlockKind(
            (t, s),
            block.slot_shape,
            block.kind,
            elements is not None,
            positions is not None,
        )
        ends = target.to(device), source.to(device)
        yield key, BlockIndices(ends, elements, positions)


def _biases(
    graph: NeuralGraph, numbers: Sequence[Tensor]
) -> Iterator[tuple[BlockKind, BlockIndices]]:
    """numbers: of the flat parameters, on the biases."""
    starts = node_starts(graph)
    for bias, elements in zip(graph.biases, numbers, strict=True):
        nodes = _nodes(starts[bias.group], bias.index, len(elements))
        key = BlockKind((), bias.slot_shape, bias.kind)
        yield key, BlockIndices((nodes.to(elements.device),), elements)


def _nodes(start: int, index: Index, *shape: int) -> Tensor:
    """Numbers of the nodes that a block or bias names in a group."""
    count = torch.Size(shape).numel()
    within = torch.arange(count) if index is None else torch.tensor(index)
    return (start + within).reshape(shape)


def mixture_of(
    layouts: Sequence[tuple[NetworkLayout, int]], kernel: tuple[int, int]
) -> Mixture:
    """Each of several networks so many times, one after the other.

    kernel: of the metanet, see `kernel_tiles`.
    """
    places = _all_places(layouts)
    edges = {key: own for key, own in places.items() if key.shape}
    biases = {key: own for key, own in places.items() if not key.shape}
    # weights come before edges of value 1, as in `GraphTensors`
    order = sorted(edges, key=lambda key: not key.has_elements)
    blocks = [
        _block(number, key, edges[key], kernel) for number, key in enumerate(order)
    ]
    copies = [one for one, count in layouts for _ in range(count)]
    kinds, activations, positions = (
        torch.cat([getattr(one, name) for one in copies])
        for name in ("kinds", "activations", "positions")
    )
    parts = GraphTensors(
        _graph(blocks, biases, len(kinds)),
        tuple(blocks),
        tuple(own.ends[0] for own in biases.values()),
        (positions,),
        kinds.unsqueeze(0),
        activations.unsqueeze(0),
        _members(copies).to(kinds.device),
        (),
    )
    weights = [edges[key].elements for key in order if key.has_elements]
    return Mixture(parts, weights, [own.elements for own in biases.values()])


def _members(copies: Sequence[NetworkLayout]) -> Tensor:
    """Which network every node is of, (n,)."""
    sizes = torch.tensor([one.nodes for one in copies])
    return torch.arange(len(copies)).repeat_interleave(sizes)


def _all_places(
    layouts: Sequence[tuple[NetworkLayout, int]],
) -> dict[BlockKind, BlockIndices]:
    """Those of all networks together, in the order of their first occurrence."""
    found: dict[BlockKind, list[BlockIndices]] = {}
    nodes = numels = 0
    for layout, count in layouts:
        steps = torch.arange(count)
        begins = nodes + layout.nodes * steps, numels + layout.numel * steps
        for key, own in layout.places.items():
            found.setdefault(key, []).append(own.copied(*begins))
        nodes += layout.nodes * count
        numels += layout.numel * count
    return {key: BlockIndices.side_by_side(some) for key, some in found.items()}


def _block(
    number: int, key: BlockKind, places: BlockIndices, kernel: tuple[int, int]
) -> BlockTensors:
    (targets, sources), (t, s) = places.ends, key.shape
    shape = len(targets), t, s
    view = None
    if key.has_elements:
        view = _whole_view(number, (*shape, *key.slot_shape))
    block = EdgeBlock(view, 0, 0, shape, key.slot_shape, key.kind)
    groups, to, fro = (slice(0, n) for n in shape)
    return BlockTensors(
        block,
        number,
        len(kernel_tiles(key.slot_shape, kernel)),
        (EdgeChunk(groups, to, fro, view, view is not None),),
        targets.flatten(),
        sources.flatten(),
        places.positions,
    )


def _whole_view(number: int, shape: tuple[int, ...]) -> View:
    return View(number, shape, contiguous_strides(shape))


def _graph(
    blocks: Sequence[BlockTensors], biases: dict[BlockKind, BlockIndices], nodes: int
) -> NeuralGraph:
    """The graph of a network that has what lies side by side as a parameter each."""
    weights = [own.block for own in blocks]
    views = [block.view for block in weights if block.view is not None]
    found = []
    for key, places in biases.items():
        shape = len(places.ends[0]), *key.slot_shape
        view = _whole_view(len(views), shape)
        views.append(view)
        found.append(Bias(view, 0, key.slot_shape, key.kind))
    specs = (ParameterSpec(str(view.parameter), view.shape) for view in views)
    group = NeuronGroup("all", nodes)
    return NeuralGraph(tuple(specs), (group,), tuple(weights), tuple(found))


def _copied(numbers: Tensor, starts: Tensor) -> Tensor:
    """Numbers that begin there, one copy after the other along the first axis."""
    shift = starts.to(numbers).view(-1, *[1] * numbers.dim())
    return (numbers + shift).flatten(0, 1)
