"""Chains of linear or convolutional layers, as the data of NP layers."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ngopt.graph import GraphValues, NeuralGraph
from ngopt.metanets.graph_data.graph_tensors import BlockTensors, EdgeChunk
from ngopt.metanets.layers.edge_states import EdgeStates
from ngopt.metanets.layers.np_layer import Channels
from ngopt.metanets.nfn import chain_of, layers_of


class ChainValues(NamedTuple):
    """Features of b networks for an NP layer.

    weights: (b, 1, n_target, n_source, channels) per weight.
    nodes: (b, n, channels) per group.
    whole: (b, channels), which no permutation affects.
    """

    weights: EdgeStates
    nodes: list[Tensor]
    whole: Tensor


class Chain:
    """A chain of layers, divided into weights between permuted groups, and features.

    permutes_ends: whether inputs and outputs are permuted like hidden neurons (NP).
    Otherwise (HNP) their weights are features of the hidden neurons at the other end,
    after the bias, and the biases of outputs are features of the network.

    order: the weights between permuted groups, from inputs to outputs, each in one
    chunk.

    Raises ValueError for other graphs than plain chains, and without hidden neurons
    unless the ends are permuted.
    """

    def __init__(self, graph: NeuralGraph, permutes_ends: bool):
        if chain_of(graph) is None:
            raise ValueError(
                "expected networks that are plain chains of layers; got another graph"
            )
        self.graph, self.permutes_ends = graph, permutes_ends
        self.layers = layers_of(graph)
        if not permutes_ends and len(self.layers) < 2:
            raise ValueError(
                "expected networks with hidden neurons; got a single layer"
            )
        self.order: list[BlockTensors] = []
        for layer in self.layers if permutes_ends else self.layers[1:-1]:
            block = graph.weights[layer.weight]
            slices = (slice(0, size) for size in block.shape)
            chunk = EdgeChunk(layer.weight, 0, *slices, view=block.view)
            self.order.append(
                BlockTensors(block, layer.weight, 1, (chunk,), None, None)
            )
        self.first = graph.weights[self.layers[0].weight]
        self.last = graph.weights[self.layers[-1].weight]

    def channels(self, d: int, of_slots: bool = False) -> Channels:
        """For d features per edge and bias, or per slot of them."""
        weights = [d * parts.block.slots if of_slots else d for parts in self.order]
        biases = [0 if layer.bias is None else d for layer in self.layers]
        if self.permutes_ends:
            return Channels(weights, [0, *biases])
        _, _, inputs = self.first.shape
        _, outputs, _ = self.last.shape
        nodes = biases[:-1]
        nodes[0] += d * inputs * (self.first.slots if of_slots else 1)
        nodes[-1] += d * outputs * (self.last.slots if of_slots else 1)
        return Channels(weights, nodes, outputs * biases[-1])

    def gather(self, params: Sequence[Tensor]) -> ChainValues:
        """From parameters, (b, *shape) each."""
        values = self.graph.gather(params, batch_dims=1)

        def first(_: Tensor | None, chunk: EdgeChunk) -> Tensor:
            return values.edges[chunk.block]

        nodes = []
        for layer in self.layers:
            size = self.graph.weights[layer.weight].shape[1]
            empty = params[0].new_zeros(len(params[0]), size, 0)
            nodes.append(empty if layer.bias is None else values.biases[layer.bias])
        if self.permutes_ends:
            nodes.insert(0, params[0].new_zeros(len(params[0]), self.first.shape[2], 0))
            whole = params[0].new_zeros(len(params[0]), 0)
        else:
            whole = nodes.pop().flatten(1)
            # (b, n, neurons at the other end, slots)
            from_inputs = values.edges[self.layers[0].weight].squeeze(1)
            to_outputs = values.edges[self.layers[-1].weight].squeeze(1).transpose(1, 2)
            nodes[0] = torch.cat([nodes[0], from_inputs.flatten(2)], -1)
            nodes[-1] = torch.cat([nodes[-1], to_outputs.flatten(2)], -1)
        return ChainValues(EdgeStates(self.order, first, keep=True), nodes, whole)

    def scatter(self, values: ChainValues, d: int) -> list[Tensor]:
        """From d features per slot of an edge or bias, to parameters (b, d, *shape)."""
        edges = {}
        for parts in self.order:
            state = values.weights.of(parts.chunks[0])
            edges[parts.number] = state.unflatten(-1, (parts.block.slots, d))
        nodes = list(values.nodes)
        if self.permutes_ends:
            del nodes[0]
        else:
            _, outputs, _ = self.last.shape
            nodes[-1], to_outputs = _split(nodes[-1], (outputs, self.last.slots, d))
            edges[self.layers[-1].weight] = to_outputs.transpose(1, 2).unsqueeze(1)
            _, _, inputs = self.first.shape
            nodes[0], from_inputs = _split(nodes[0], (inputs, self.first.slots, d))
            edges[self.layers[0].weight] = from_inputs.unsqueeze(1)
            width = values.whole.shape[-1] // outputs  # d, or 0 without biases
            nodes.append(values.whole.unflatten(-1, (outputs, width)))
        biases = {
            layer.bias: features.unsqueeze(-2)
            for layer, features in zip(self.layers, nodes, strict=True)
            if layer.bias is not None
        }
        graph_values = GraphValues(_in_order(biases), _in_order(edges))
        params = self.graph.scatter(graph_values, batch_dims=1)
        return [value.movedim(-1, 1) for value in params]


def _split(features: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Features (b, n, channels) without the last ones, and these, (b, n, *shape)."""
    count = prod(shape)
    return features[..., :-count], features[..., -count:].unflatten(-1, shape)


def _in_order(values: dict[int, Tensor]) -> tuple[Tensor, ...]:
    return tuple(values[number] for number in sorted(values))
