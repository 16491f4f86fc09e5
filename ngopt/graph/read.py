"""Runs the network that a neural graph describes, on the values that the graph holds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ngopt.graph.core import GraphValues, NeuralGraph


def run_graph(graph: NeuralGraph, values: GraphValues, inputs: Tensor) -> Tensor:
    """The network's output, computed from nodes and edges alone.

    graph: from `build_graph` of a sequential module. values: its gathered parameters.
    inputs: (batch, n, *spatial), n being the size of the input group.

    Raises ValueError if the graph is not one chain of blocks from an input to an output.
    """
    if any(a.target != b.source for a, b in zip(graph.blocks, graph.blocks[1:], strict=False)):
        raise ValueError("run_graph: expected one chain of blocks; got a graph of several components")
    biases = {bias.group: value.squeeze(1) for bias, value in zip(graph.biases, values.biases, strict=True)}
    states = _transform(graph, graph.blocks[0].source, inputs)
    for block, edges in zip(graph.blocks, values.edges, strict=True):
        bias = biases.get(block.target)
        if block.convolution is None:
            states = F.linear(states, edges.squeeze(0).flatten(1), bias)
        else:
            conv = block.convolution
            kernel = edges.squeeze(0).unflatten(2, block.slot_shape)
            states = F.conv2d(states, kernel, bias, conv.stride, conv.padding, conv.dilation)
        states = _transform(graph, block.target, states)
    return states


def _transform(graph: NeuralGraph, group: int, states: Tensor) -> Tensor:
    for transform in graph.groups[group].transforms:
        states = transform(states)
    return states
