"""The paper's two ways to draw a flattened feature map (Kofinas et al. 2024, App. C.2),
as views of a graph.

`build_graph` makes the positions of a flattened map slots of the edges from each
channel, so that every element has one place. Both views here give each channel at each
position a node of its own instead, and lead to the same parameters.
"""

from __future__ import annotations

from dataclasses import replace

from ngopt.graph.graph_builder import GraphBuilder
from ngopt.graph.groups_and_blocks import EdgeBlock, Index, View
from ngopt.graph.neural_graph import NeuralGraph

FLATTEN = "flatten"
"""Kind of the blocks whose slots are positions of a flattened map."""


def with_virtual_layer(graph: NeuralGraph) -> NeuralGraph:
    """Adds, before every layer behind a flatten, a layer of nodes,
    one for each channel and position.

    Each channel has edges of value 1 to its own; they have no features.
    """
    builder = _copy(graph)
    for block in [b for b in builder.blocks if b.kind == FLATTEN]:
        name = f"{graph.groups[block.target].name}.flattened"
        group = builder.add_group(name, block.shape[2] * block.slots, "position")
        spread = EdgeBlock(
            None,
            block.source,
            group,
            (block.shape[2], block.slots, 1),
            kind="spread",
            source_index=block.source_index,
            target_index=_places(block),
        )
        at = builder.blocks.index(block)
        builder.blocks[at : at + 1] = [spread, _unrolled(block, group)]
    return replace(builder.build(*_ends(graph)), parameters=graph.parameters)


def with_repeated_nodes(graph: NeuralGraph) -> NeuralGraph:
    """Repeats the channels before every flatten, with the edges and biases that lead to
    them, for each position.

    The parameters of those edges and biases then have a place for each position.
    """
    builder = _copy(graph)
    for block in [b for b in builder.blocks if b.kind == FLATTEN]:
        size = graph.groups[block.source].size
        group = builder.add_group(
            f"{graph.groups[block.source].name}.repeated",
            size * block.slots,
            "neuron",
        )
        for k in range(block.slots):
            builder.blocks += [
                replace(
                    b,
                    target=group,
                    target_index=_copies(b.target_index, size, block.slots, k),
                )
                for b in graph.blocks
                if b.target == block.source
            ]
            builder.biases += [
                replace(b, group=group, index=_copies(b.index, size, block.slots, k))
                for b in graph.biases
                if b.group == block.source
            ]
        builder.blocks.remove(block)
        chosen = block.source_index or range(size)
        places = _places(block, step=block.slots, of=list(chosen))
        builder.blocks.append(replace(_unrolled(block, group), source_index=places))
    return replace(
        _without_dead_ends(builder, graph).build(*_ends(graph)),
        parameters=graph.parameters,
    )


def _copy(graph: NeuralGraph) -> GraphBuilder:
    builder = GraphBuilder(
        [replace(spec, is_complex=False) for spec in graph.parameters]
    )
    builder.groups, builder.blocks = list(graph.groups), list(graph.blocks)
    builder.biases, builder.unplaced = list(graph.biases), list(graph.unplaced)
    return builder


def _unrolled(block: EdgeBlock, source: int) -> EdgeBlock:
    """The block with its slots as sources: channel after channel,
    or position after position where these lie so."""
    assert block.view is not None
    _, targets, channels = block.shape
    _, row, channel, position = block.view.strides
    step = min(channel, position) if channels > 1 else position
    shape = (1, targets, channels * block.slots)
    view = View(block.view.parameter, shape, (0, row, step), block.view.offset)
    return replace(
        block,
        view=view,
        source=source,
        shape=shape,
        slot_shape=(),
        kind="weight",
        source_index=None,
    )


def _places(
    block: EdgeBlock, step: int | None = None, of: list[int] | None = None
) -> Index:
    """Nodes in the order of `_unrolled` or, for a layer that has them position after
    position, of the channels."""
    assert block.view is not None
    channels, slots = block.shape[2], block.slots
    by_channel = channels == 1 or block.view.strides[2] > block.view.strides[3]
    if step is None:
        # the nodes are in the order of the weight's columns: which of them belong to
        # each channel
        order = [
            c * slots + k if by_channel else k * channels + c
            for c in range(channels)
            for k in range(slots)
        ]
    else:
        # the nodes are in the order channel, position: where each of the weight's
        # columns is from
        assert of is not None
        pairs = (
            [(c, k) for c in of for k in range(slots)]
            if by_channel
            else [(c, k) for k in range(slots) for c in of]
        )
        order = [c * step + k for c, k in pairs]
    return None if order == list(range(len(order))) and of is None else tuple(order)


def _copies(index: Index, size: int, slots: int, k: int) -> Index:
    return tuple(n * slots + k for n in (index or range(size)))


def _ends(graph: NeuralGraph) -> tuple[set[int], set[int]]:
    roles = [group.role for group in graph.groups]
    return {i for i, r in enumerate(roles) if r == "input"}, {
        i for i, r in enumerate(roles) if r == "output"
    }


def _without_dead_ends(builder: GraphBuilder, graph: NeuralGraph) -> GraphBuilder:
    """Takes out what led to channels that only their copies use now."""
    flattened = {b.source for b in graph.blocks if b.kind == FLATTEN}
    dead = {g for g in flattened if not any(b.source == g for b in builder.blocks)}
    builder.blocks = [b for b in builder.blocks if b.target not in dead]
    builder.biases = [b for b in builder.biases if b.group not in dead]
    # forward order: the copies stand before what uses them
    copied = [b for b in builder.blocks if b.target >= len(graph.groups)]
    behind = [b for b in builder.blocks if b.source >= len(graph.groups)]
    rest = [b for b in builder.blocks if b not in copied and b not in behind]
    reached = {b.target for b in behind}
    early = [b for b in rest if not _follows(rest, reached, b.source)]
    late = [b for b in rest if b not in early]
    builder.blocks = [*early, *copied, *behind, *late]
    return builder


def _follows(blocks: list[EdgeBlock], reached: set[int], group: int) -> bool:
    """Whether a group is one of those reached or lies behind one."""
    seen: set[int] = set()
    todo = [group]
    while todo:
        g = todo.pop()
        if g in reached:
            return True
        if g not in seen:
            seen.add(g)
            todo += [b.source for b in blocks if b.target == g]
    return False
