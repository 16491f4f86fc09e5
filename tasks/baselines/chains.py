"""Chains of linear or convolutional layers, as the data of NP layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ngopt.graph import GraphValues, NeuralGraph
from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk
from ngopt.metanets.layers.edge_states import EdgeStates
from ngopt.metanets.layers.np_layer import Channels
from ngopt.metanets.nfn import ChainLayer, chain_of, layers_of


class ChainValues(NamedTuple):
    """Features of b networks for an NP layer.

    weights: (b, 1, n_target, n_source, channels) per weight.
    nodes: (b, n, channels) per group.
    whole: (b, channels), which no permutation affects.
    """

    weights: EdgeStates
    nodes: list[Tensor]
    whole: Tensor


class NodeParameter(NamedTuple):
    """A parameter that is a node feature: a bias, or a weight with only one permuted
    end.

    kind: "bias", or the permuted end of the weight. number: among the graph's biases,
    or its weights. others: neurons at the other end. slots: size of a kernel.
    """

    kind: Literal["bias", "target", "source"]
    number: int
    others: int = 1
    slots: int = 1

    def gather(self, values: GraphValues) -> Tensor:
        """(b, n, others * slots)."""
        if self.kind == "bias":
            return values.biases[self.number]
        # (b, n_target, n_source, slots)
        edges = values.edges[self.number].squeeze(1)
        own = edges if self.kind == "target" else edges.transpose(1, 2)
        return own.flatten(2)

    def scatter(self, features: Tensor, d: int) -> Tensor:
        """The inverse of `gather` for d features per element, as in `GraphValues`."""
        own = features.unflatten(-1, (self.others, self.slots, d))
        if self.kind == "bias":
            return own.squeeze(2)
        edges = own if self.kind == "target" else own.transpose(1, 2)
        return edges.unsqueeze(1)

    def channels(self, d: int, of_slots: bool) -> int:
        """Node features for d features per edge or bias, or per slot."""
        return d * self.others * (self.slots if of_slots else 1)


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of layers, divided into weights between permuted groups, and features.

    order: these weights, from inputs to outputs. sizes: of the groups.
    nodes: for each group, the parameters that are its features.
    output_bias: the bias of outputs that are not permuted, and their number; or None.
    """

    graph: NeuralGraph
    order: tuple[BlockTensors, ...]
    sizes: tuple[int, ...]
    nodes: tuple[tuple[NodeParameter, ...], ...]
    output_bias: tuple[NodeParameter, int] | None = None

    def channels(self, d: int, of_slots: bool = False) -> Channels:
        """For d features per edge and bias, or per slot of them."""
        weights = [d * parts.block.slots if of_slots else d for parts in self.order]
        nodes = []
        for parameters in self.nodes:
            nodes.append(sum(p.channels(d, of_slots) for p in parameters))
        whole = 0 if self.output_bias is None else d * self.output_bias[1]
        return Channels(weights, nodes, whole)

    def gather(self, params: Sequence[Tensor]) -> ChainValues:
        """From parameters, (b, *shape) each."""
        values = self.graph.gather(params, batch_dims=1)

        def first(_: Tensor | None, chunk: EdgeChunk) -> Tensor:
            return values.edges[chunk.block]

        batch = len(params[0])
        nodes = []
        for size, parameters in zip(self.sizes, self.nodes, strict=True):
            features = [params[0].new_zeros(batch, size, 0)]
            for parameter in parameters:
                features.append(parameter.gather(values))
            nodes.append(torch.cat(features, -1))
        if self.output_bias is None:
            whole = params[0].new_zeros(batch, 0)
        else:
            whole = self.output_bias[0].gather(values).flatten(1)
        return ChainValues(EdgeStates(self.order, first, keep=True), nodes, whole)

    def scatter(self, values: ChainValues, d: int) -> list[Tensor]:
        """From d features per slot of an edge or bias, to parameters (b, d, *shape)."""
        edges, biases = {}, {}
        for parts in self.order:
            state = values.weights.of(parts.chunks[0])
            edges[parts.number] = state.unflatten(-1, (parts.block.slots, d))
        for parameter, features in self._node_features(values, d):
            found = biases if parameter.kind == "bias" else edges
            found[parameter.number] = parameter.scatter(features, d)
        graph_values = GraphValues(_in_order(biases), _in_order(edges))
        params = self.graph.scatter(graph_values, batch_dims=1)
        return [value.movedim(-1, 1) for value in params]

    def _node_features(
        self, values: ChainValues, d: int
    ) -> Iterator[tuple[NodeParameter, Tensor]]:
        """Every node parameter with its features, (b, n, others * slots * d)."""
        for parameters, features in zip(self.nodes, values.nodes, strict=True):
            if parameters:
                widths = [p.channels(d, of_slots=True) for p in parameters]
                yield from zip(parameters, features.split(widths, -1), strict=True)
        if self.output_bias is not None:
            parameter, count = self.output_bias
            yield parameter, values.whole.unflatten(-1, (count, d))


def chain_with_moving_ends(graph: NeuralGraph) -> Chain:
    """Inputs and outputs are permuted like hidden neurons (NP). Raises ValueError for
    other graphs than plain chains."""
    if chain_of(graph) is None:
        raise ValueError(
            "expected networks that are plain chains of layers; got another graph"
        )
    layers = layers_of(graph)
    order = [_whole_block(graph, layer) for layer in layers]
    groups = [order[0].block.source, *(parts.block.target for parts in order)]
    sizes = [graph.groups[group].size for group in groups]
    nodes = [(), *map(_bias, layers)]
    return Chain(graph, tuple(order), tuple(sizes), tuple(nodes))


def chain_with_fixed_ends(graph: NeuralGraph) -> Chain:
    """Only hidden neurons are permuted (HNP). Weights of inputs and outputs are their
    features. Raises ValueError without hidden neurons, and for other graphs than plain
    chains."""
    chain = chain_with_moving_ends(graph)
    if len(chain.order) < 2:
        raise ValueError("expected networks with hidden neurons; got a single layer")
    first, last = chain.order[0], chain.order[-1]
    inward, outward = first.block, last.block
    nodes = list(chain.nodes[1:-1])
    from_inputs = NodeParameter("target", first.number, inward.shape[2], inward.slots)
    to_outputs = NodeParameter("source", last.number, outward.shape[1], outward.slots)
    nodes[0] += (from_inputs,)
    nodes[-1] += (to_outputs,)
    biases = chain.nodes[-1]
    output_bias = (biases[0], outward.shape[1]) if biases else None
    order, sizes = chain.order[1:-1], chain.sizes[1:-1]
    return Chain(graph, order, sizes, tuple(nodes), output_bias)


def _bias(layer: ChainLayer) -> tuple[NodeParameter, ...]:
    return () if layer.bias is None else (NodeParameter("bias", layer.bias),)


def _whole_block(graph: NeuralGraph, layer: ChainLayer) -> BlockTensors:
    """The weights of a layer in one chunk."""
    block, number = graph.weights[layer.weight], layer.weight
    groups, targets, sources = (slice(0, size) for size in block.shape)
    chunk = EdgeChunk(number, 0, groups, targets, sources, block.view)
    return BlockTensors(block, number, 1, (chunk,), None, None)


def _in_order(values: dict[int, Tensor]) -> tuple[Tensor, ...]:
    return tuple(values[number] for number in sorted(values))
