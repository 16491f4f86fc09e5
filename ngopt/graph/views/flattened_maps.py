"""Graphs in which every position of a flattened feature map has a node (Kofinas et al.
2024, App. C.2).

`build_graph` makes the positions of a flattened map slots of the edges from each
channel, so that every element has one place. Both functions here give each channel at
each position its own node instead. The parameters stay the same.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from ngopt.graph.graph_builder import GraphBuilder
from ngopt.graph.groups_and_blocks import EdgeBlock, Index
from ngopt.graph.neural_graph import NeuralGraph


def with_virtual_layer(graph: NeuralGraph) -> NeuralGraph:
    """Adds a layer of nodes before every layer that follows a flatten, one node for
    each channel and position.

    Each channel has edges of value 1 to its nodes.
    """
    builder = _builder_of(graph)
    for block in _flattens(graph):
        name = f"{graph.groups[block.target].name}.flattened"
        _, _, channels = block.shape
        group = builder.add_group(name, channels * block.slots, "position")
        # the columns of the weight, ordered by channel, then position
        columns = np.argsort(_repeated_nodes(block, range(channels))).tolist()
        index = None if columns == sorted(columns) else tuple(columns)
        shape = (channels, block.slots, 1)
        spread = EdgeBlock(None, block.source, group, shape, kind="spread")
        spread = replace(spread, source_index=block.source_index, target_index=index)
        place = builder.blocks.index(block)
        builder.blocks[place : place + 1] = [spread, _with_columns(block, group)]
    return _built(builder, graph)


def with_repeated_nodes(graph: NeuralGraph) -> NeuralGraph:
    """Repeats the channels before every flatten for each position, with their incoming
    edges and biases.

    The parameters of these have a place for each position.
    """
    builder = _builder_of(graph)
    for block in _flattens(graph):
        old = graph.groups[block.source]
        size = old.size * block.slots
        group = builder.add_group(f"{old.name}.repeated", size, "neuron")
        for position in range(block.slots):
            nodes = range(position, size, block.slots)  # one for each channel
            for into in graph.blocks_into(block.source):
                index = _picked(nodes, into.target_index)
                builder.blocks.append(replace(into, target=group, target_index=index))
            for bias in graph.biases_of(block.source):
                index = _picked(nodes, bias.index)
                builder.biases.append(replace(bias, group=group, index=index))
        builder.blocks.remove(block)
        index = _repeated_nodes(block, block.source_index or range(old.size))
        builder.blocks.append(replace(_with_columns(block, group), source_index=index))
    # without blocks and biases of channels of which only the copies are used
    dead = {block.source for block in _flattens(graph)}
    dead -= {block.source for block in builder.blocks}
    builder.blocks = [block for block in builder.blocks if block.target not in dead]
    builder.biases = [bias for bias in builder.biases if bias.group not in dead]
    repeated = range(len(graph.groups), len(builder.groups))
    builder.blocks = _in_forward_order(builder.blocks, repeated)
    return _built(builder, graph)


def _picked(nodes: Sequence[int], index: Index) -> Index:
    return tuple(nodes) if index is None else tuple(nodes[neuron] for neuron in index)


def _builder_of(graph: NeuralGraph) -> GraphBuilder:
    # slots of complex parameters are pairs already
    specs = [replace(spec, is_complex=False) for spec in graph.parameters]
    builder = GraphBuilder(specs)
    builder.groups = list(graph.groups)
    builder.blocks = list(graph.blocks)
    builder.biases = list(graph.biases)
    builder.unplaced = list(graph.unplaced)
    return builder


def _built(builder: GraphBuilder, graph: NeuralGraph) -> NeuralGraph:
    inputs = {n for n, group in enumerate(graph.groups) if group.role == "input"}
    outputs = {n for n, group in enumerate(graph.groups) if group.role == "output"}
    return replace(builder.build(inputs, outputs), parameters=graph.parameters)


def _flattens(graph: NeuralGraph) -> list[EdgeBlock]:
    """The blocks whose slots are positions of a flattened map."""
    return [block for block in graph.blocks if block.kind == "flatten"]


def _with_columns(block: EdgeBlock, source: int) -> EdgeBlock:
    """The block from a group that has a node for every column of its weight."""
    _, targets, channels = block.shape
    _, row, channel, position = block.elements.strides
    column = position if channels == 1 else min(channel, position)
    shape = (1, targets, channels * block.slots)
    view = replace(block.elements, shape=shape, strides=(0, row, column))
    return EdgeBlock(view, source, block.target, shape, target_index=block.target_index)


def _repeated_nodes(block: EdgeBlock, channels: Sequence[int]) -> tuple[int, ...]:
    """For every column of a weight its node. Nodes are ordered by channel, then
    position."""
    # (channels, slots)
    nodes = np.add.outer(np.array(channels) * block.slots, np.arange(block.slots))
    _, _, channel, position = block.elements.strides
    # columns of a single channel are position after position
    if block.shape[2] > 1 and channel <= position:
        nodes = nodes.T
    return tuple(nodes.ravel().tolist())


def _in_forward_order(
    blocks: Sequence[EdgeBlock], repeated: Collection[int]
) -> list[EdgeBlock]:
    """Blocks into groups of repeated nodes before the blocks that read these."""
    downstream = set(repeated)
    size = 0
    while len(downstream) > size:
        size = len(downstream)
        for block in blocks:
            if block.source in downstream:
                downstream.add(block.target)

    def rank(block: EdgeBlock) -> int:
        if block.target in repeated:
            return 1
        if block.source in repeated:
            return 2
        return 3 if block.source in downstream else 0

    return sorted(blocks, key=rank)
