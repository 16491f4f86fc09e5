"""Networks that are chains of layers, as NP layers see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ngopt.graph import EdgeBlock, GraphValues, NeuralGraph
from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk
from ngopt.metanets.layers.edge_states import EdgeStates
from ngopt.metanets.layers.np_layer import Channels
from ngopt.metanets.nfn import ChainLayer, chain_of, layers_of


class ChainValues(NamedTuple):
    """Features of stacked networks, for an NP layer.

    weights: (b, 1, n_target, n_source, channels) each. nodes: (b, n, channels) of every
    group.
    whole: (b, channels).
    """

    weights: EdgeStates
    nodes: list[Tensor]
    whole: Tensor


class Piece(NamedTuple):
    """A parameter that is features of nodes: a bias, or a weight whose other end does
    not move.

    kind: "bias", or the end of the weight at which the nodes are. number: among the
    graph's biases, or its weights. others: neurons at the other end. slots: positions
    of its kernel.
    """

    kind: Literal["bias", "target", "source"]
    number: int
    others: int = 1
    slots: int = 1

    def read(self, values: GraphValues) -> Tensor:
        """(b, n, others * slots)."""
        if self.kind == "bias":
            return values.biases[self.number]
        # (b, n_target, n_source, slots)
        edges = values.edges[self.number].squeeze(1)
        own = edges if self.kind == "target" else edges.transpose(1, 2)
        return own.flatten(2)

    def write(self, features: Tensor, d: int) -> Tensor:
        """The inverse of `read`, for d values of each element, which are as in
        `GraphValues`."""
        own = features.unflatten(-1, (self.others, self.slots, d))
        if self.kind == "bias":
            return own.squeeze(2)
        edges = own if self.kind == "target" else own.transpose(1, 2)
        return edges.unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Chain:
    """What of a chain of layers are weights between groups of neurons that may move,
    and features.

    order: these weights, from inputs to outputs. sizes: of the groups. nodes: pieces
    that are features of each. whole: the bias of outputs that are no group, and their
    number, or nothing.
    """

    graph: NeuralGraph
    order: tuple[BlockTensors, ...]
    sizes: tuple[int, ...]
    nodes: tuple[tuple[Piece, ...], ...]
    whole: tuple[tuple[Piece, int], ...] = ()

    def channels(self, d: int, of_slots: bool = False) -> Channels:
        """Those of d features for every edge and bias, or for every slot of them."""
        weights = [d * parts.block.slots if of_slots else d for parts in self.order]
        nodes = [
            sum(d * _width(piece, of_slots) for piece in some) for some in self.nodes
        ]
        return Channels(weights, nodes, sum(d * count for _, count in self.whole))

    def read(self, params: Sequence[Tensor]) -> ChainValues:
        """Of parameters, (b, *shape) each."""
        values = self.graph.gather(params, batch_dims=1)

        def first(_: Tensor | None, chunk: EdgeChunk) -> Tensor:
            return values.edges[chunk.block]

        batch = len(params[0])
        nodes = []
        for size, some in zip(self.sizes, self.nodes, strict=True):
            nothing = params[0].new_zeros(batch, size, 0)
            nodes.append(
                torch.cat([nothing, *(piece.read(values) for piece in some)], -1)
            )
        nothing = params[0].new_zeros(batch, 0)
        outside = [piece.read(values).flatten(1) for piece, _ in self.whole]
        weights = EdgeStates(self.order, first, keep=True)
        return ChainValues(weights, nodes, torch.cat([nothing, *outside], -1))

    def write(self, found: ChainValues, d: int) -> list[Tensor]:
        """From d features of every slot of an edge and every bias, to parameters (b, d,
        *shape)."""
        edges, biases = {}, {}
        for parts in self.order:
            state = found.weights.of(parts.chunks[0])
            edges[parts.number] = state.unflatten(-1, (parts.block.slots, d))
        for piece, own in self._split(found, d):
            kept = biases if piece.kind == "bias" else edges
            kept[piece.number] = piece.write(own, d)
        values = GraphValues(_in_order(biases), _in_order(edges))
        return [
            value.movedim(-1, 1) for value in self.graph.scatter(values, batch_dims=1)
        ]

    def _split(self, found: ChainValues, d: int) -> Iterator[tuple[Piece, Tensor]]:
        """Every piece with its features, (b, n, others * slots * d)."""
        for some, features in zip(self.nodes, found.nodes, strict=True):
            widths = [d * _width(piece, of_slots=True) for piece in some]
            own = features.split(widths, -1) if some else ()
            yield from zip(some, own, strict=True)
        for piece, count in self.whole:
            yield piece, found.whole.unflatten(-1, (count, d))


def chain_with_moving_ends(graph: NeuralGraph) -> Chain:
    """Inputs and outputs are groups like the others (NP). Raises ValueError if it is no
    chain."""
    layers = _layers(graph)
    blocks = [graph.weights[layer.weight] for layer in layers]
    groups = [blocks[0].source, *(block.target for block in blocks)]
    return Chain(
        graph,
        order=tuple(_whole_block(graph, layer.weight) for layer in layers),
        sizes=tuple(graph.groups[group].size for group in groups),
        nodes=((), *(tuple(_bias(layer)) for layer in layers)),
    )


def chain_with_fixed_ends(graph: NeuralGraph) -> Chain:
    """Only hidden neurons are groups (HNP); weights of inputs and outputs are features
    of these.

    Raises ValueError if it is no chain, or has no hidden neurons.
    """
    layers = _layers(graph)
    if len(layers) < 2:
        raise ValueError("expected networks with hidden neurons; got a single layer")
    (first, *between, last), hidden = layers, layers[:-1]
    nodes = [_bias(layer) for layer in hidden]
    inward, outward = (graph.weights[layer.weight] for layer in (first, last))
    nodes[0].append(Piece("target", first.weight, inward.shape[2], inward.slots))
    nodes[-1].append(Piece("source", last.weight, outward.shape[1], outward.slots))
    targets = [graph.weights[layer.weight].target for layer in hidden]
    return Chain(
        graph,
        order=tuple(_whole_block(graph, layer.weight) for layer in between),
        sizes=tuple(graph.groups[group].size for group in targets),
        nodes=tuple(map(tuple, nodes)),
        whole=tuple((piece, outward.shape[1]) for piece in _bias(last)),
    )


def _layers(graph: NeuralGraph) -> list[ChainLayer]:
    if chain_of(graph) is None:
        raise ValueError(
            "expected networks that are plain chains of layers; got another graph"
        )
    return layers_of(graph)


def _bias(layer: ChainLayer) -> list[Piece]:
    return [] if layer.bias is None else [Piece("bias", layer.bias)]


def _whole_block(graph: NeuralGraph, number: int) -> BlockTensors:
    """A block in one chunk."""
    block: EdgeBlock = graph.weights[number]
    groups, targets, sources = (slice(0, size) for size in block.shape)
    chunk = EdgeChunk(number, 0, groups, targets, sources, block.view, True)
    return BlockTensors(block, number, 1, (chunk,), None, None)


def _width(piece: Piece, of_slots: bool) -> int:
    return piece.others * piece.slots if of_slots else piece.others


def _in_order(values: dict[int, Tensor]) -> tuple[Tensor, ...]:
    return tuple(values[number] for number in sorted(values))
