"""Batches of small networks as one graph of few blocks.

Blocks of edges are cut into squares of one size and single edges: networks of all
widths then share a handful of blocks, since a block is one call of every operation.
Messages to a neuron are aggregated over all its blocks, so results do not change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ngopt.graph import NeuralGraph
from ngopt.metanets.graph_data.graph_tensors import (
    BlockTensors,
    EdgeChunk,
    GraphTensors,
)
from tasks.models.mixture import (
    BlockIndices,
    BlockKind,
    NetworkLayout,
    layout_of,
    mixture_of,
)

KERNEL = 4, 4  # largest of a tile
SIDES = 8, 1  # of the squares, from large to small


class Network(NamedTuple):
    """A network that is part of batches.

    layout: with cut blocks. columns: features of all elements, (numel, d). groups:
    sizes of its groups of neurons.
    """

    layout: NetworkLayout
    columns: Tensor
    groups: Tensor


@dataclass(frozen=True)
class Batch:
    """b networks: their graph, and the features of its edges and biases.

    It is a `FeatureSource` of the first `d_in` features.

    numbers: of the networks among all, (b,). edge_features: of every weight block,
    (groups, n_target, n_source, slots, d). bias_features: (n, slots, d). groups: of
    every node, (n,). group_sizes: (groups, 1). networks: of every group, (groups,).
    group_counts: of every network, (b, 1).
    """

    numbers: Tensor
    tensors: GraphTensors
    edge_features: Sequence[Tensor]
    bias_features: Sequence[Tensor]
    groups: Tensor
    group_sizes: Tensor
    networks: Tensor
    group_counts: Tensor
    d_in: int

    batch = torch.Size()

    def edges(self, chunk: EdgeChunk) -> Tensor:
        return self.edge_features[chunk.block][..., : self.d_in]

    def bias(self, number: int) -> Tensor:
        return self.bias_features[number][..., : self.d_in]


def network_of(graph: NeuralGraph, columns: Tensor) -> Network:
    layout = cut(layout_of(graph, columns), SIDES)
    groups = torch.tensor([group.size for group in graph.groups])
    return Network(layout, columns, groups)


def cut(layout: NetworkLayout, sides: Sequence[int]) -> NetworkLayout:
    """The layout with blocks that are cut into pieces with sides of these lengths.

    sides: from large to small; the last is 1.
    """
    pieces: dict[BlockKind, list[BlockIndices]] = {}
    for kind, indices in layout.indices.items():
        for own, part in _cut_block(kind, indices, sides):
            pieces.setdefault(own, []).append(part)
    joined = {kind: BlockIndices.concatenated(own) for kind, own in pieces.items()}
    return replace(layout, indices=joined)


def _cut_block(
    kind: BlockKind, indices: BlockIndices, sides: Sequence[int]
) -> Iterator[tuple[BlockKind, BlockIndices]]:
    if not kind.shape:  # biases
        yield kind, indices
        return
    if not kind.has_elements or kind.slot_shape or kind.kind != "weight":
        sides = sides[-1:]  # there are few of them
    targets, sources = indices.ends
    for rows, height in _runs(kind.shape[0], sides):
        for columns, width in _runs(kind.shape[1], sides):
            target = targets[:, rows].unflatten(1, (-1, 1, height))
            source = sources[:, columns].unflatten(1, (1, -1, width))
            down = target.shape[1]
            across = source.shape[2]
            target = target.expand(-1, -1, across, -1)
            source = source.expand(-1, down, -1, -1)
            ends = (target.flatten(0, 2), source.flatten(0, 2))
            elements = indices.elements
            positions = indices.positions
            if elements is not None:
                own = elements[:, rows, columns].unflatten(2, (-1, width))
                own = own.unflatten(1, (-1, height)).transpose(2, 3)
                elements = own.flatten(0, 2)
            if positions is not None:
                positions = positions.repeat_interleave(down * across, 0)
            part = BlockIndices(ends, elements, positions)
            yield kind._replace(shape=(height, width)), part


def _runs(length: int, sides: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Slices that are multiples of a side, with this side."""
    start = 0
    for side in sides:
        stop = start + (length - start) // side * side
        if stop > start:
            yield slice(start, stop), side
        start = stop


def batch_of(networks: Sequence[Network], numbers: Sequence[int]) -> Batch:
    """numbers: of the networks that are in the batch."""
    chosen = [networks[number] for number in numbers]
    layouts = [(own.layout, 1) for own in chosen]
    mixture = mixture_of(layouts, KERNEL)
    values = torch.cat([own.columns for own in chosen])
    edges, biases = [], []
    for elements in mixture.weights:
        assert elements is not None
        edges.append(values[elements])
    for elements in mixture.biases:
        assert elements is not None
        biases.append(values[elements])
    sizes = torch.cat([own.groups for own in chosen])
    counts = torch.tensor([len(own.groups) for own in chosen])
    return Batch(
        numbers=torch.tensor(numbers),
        tensors=mixture.tensors,
        edge_features=edges,
        bias_features=biases,
        groups=torch.arange(len(sizes)).repeat_interleave(sizes),
        group_sizes=sizes.clamp(min=1).unsqueeze(1),
        networks=torch.arange(len(chosen)).repeat_interleave(counts),
        group_counts=counts.unsqueeze(1),
        d_in=values.shape[1],
    )


def moved(value: Any, device: str) -> Any:
    """Tensors of a batch, and of what it is made of, on a device."""
    found = value
    if isinstance(value, Tensor):
        found = value.to(device)
    elif type(value) in (list, tuple):
        found = type(value)(moved(own, device) for own in value)
    elif isinstance(value, Batch | GraphTensors | BlockTensors):
        changes = {}
        for field in fields(value):
            changes[field.name] = moved(getattr(value, field.name), device)
        found = replace(value, **changes)
    return found
