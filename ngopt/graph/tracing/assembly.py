"""Assembles the nodes and edges of a trace into a `NeuralGraph`."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ngopt.graph.graph_builder import GraphBuilder
from ngopt.graph.groups_and_blocks import (
    Bias,
    EdgeBlock,
    Index,
    ParameterSpec,
    View,
    contiguous_strides,
)
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.tracing.blocks import Block, blocks_of
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.nodes import Mark, Nodes
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Unknown, has_any, not_none, same_along


def assemble(tracer: Tracer) -> NeuralGraph:
    """The graph of all nodes and edges, of which no more are unified."""
    # before blocks are found, as it adds edges
    add_function_nodes(tracer)
    blocks, biases = [], []
    for edges in tracer.all_edges:
        pieces = list(blocks_of(edges, tracer.nodes))
        of_its_kind = biases if edges.sources is None else blocks
        of_its_kind += pieces
        placed = sum(piece.view.numel for piece in pieces if piece.view)
        if edges.elements is not None and placed < edges.elements.shape.numel():
            # such as rows that share elements
            tracer.pin(*not_none(edges.sources, edges.targets))
    blocks = with_copies(tracer, blocks)
    biases = _one_for_each_parameter(tracer, biases)
    whole = with_unused_rows(tracer.parameters, [*blocks, *biases])
    blocks, biases = whole[: len(blocks)], whole[len(blocks) :]
    # after the copies, which are ends too, and before the marks of groups are read
    for block in whole:
        # such as a masked weight, whose rows differ by more than their elements
        if block.view and block.view.parameter in tracer.pinned_parameters:
            tracer.pin(*_ends(block))
    builder = GraphBuilder(tracer.parameters)
    # numbers of groups are final: with_copies made the last nodes
    groups = _Groups(tracer.nodes, builder, whole)
    builder.blocks += map(groups.edge_block, blocks)
    builder.biases += map(groups.bias, biases)
    applied = defaultdict(list)
    for labels, name, _ in tracer.applied_functions:
        if name is not None:
            for number in groups.of(labels):
                applied[number].append(name)
    for number, names in applied.items():
        builder.note_functions(number, names)
    for number in groups.marked(Mark.PINNED):
        builder.groups[number] = replace(builder.groups[number], is_pinned=True)
    inputs = groups.marked(Mark.INPUT)
    outputs = groups.marked(Mark.OUTPUT)
    hidden = {block.target for block in builder.blocks}
    hidden |= groups.marked(Mark.LEARNED)
    # build makes outputs of positions without edges from them
    positions = {n for n in hidden if builder.groups[n].kind == "position"}
    # edges lead to outputs too
    graph = builder.build(inputs, outputs, hidden - positions - outputs - inputs)
    reasons = {}
    for number, spec in enumerate(tracer.parameters):
        if spec.name in graph.unplaced:
            reasons[spec.name] = _why_unplaced(tracer, number)
    return replace(graph, reasons=reasons)


def _why_unplaced(tracer: Tracer, parameter: int) -> str:
    """Names the function that a parameter is not followed through, or the one behind
    which the neurons that it meets are unknown."""

    def is_unknown(call: Node) -> bool:
        return has_any(tree_leaves(tracer.values.get(call)), Unknown)

    def is_followed(call: Node) -> bool:
        leaves = tree_leaves(tracer.values.get(call))
        return parameter in {x.parameter for x in leaves if isinstance(x, Elements)}

    for source in filter(is_followed, tracer.values):
        for user in source.users:
            # a constant depends on no parameter: a layer of no rows is one
            is_constant = isinstance(tracer.values.get(user), Tensor)
            if user.op != "call_function" or is_constant or is_followed(user):
                continue
            lost = user
            while before := list(filter(is_unknown, lost.all_input_nodes)):
                lost = before[0]
            packet = packet_of(lost)
            has_rule = not tracer.rules.keys().isdisjoint({lost.target, packet})
            is_missing = lost is user and not has_rule
            reason = "no rule for" if is_missing else "lost in"
            return f"{reason} {getattr(packet, '__name__', lost.name)}"
    return "unused"


def add_function_nodes(tracer: Tracer) -> None:
    """Adds nodes for functions that were not applied to all neurons of a layer.

    They have edges to these neurons. Behind cat([-x[2:], x[:2]]) the first two neurons
    of x cannot be exchanged with the others.
    """
    nodes = tracer.nodes
    everything = torch.arange(nodes.count)
    is_left = nodes.find_each() == everything
    # inputs are never exchanged
    is_left[nodes.marked(Mark.INPUT)] = False
    left = everything[is_left]
    groups = nodes.group_of(left)
    _, histories = _histories(tracer)[left].unique(return_inverse=True)
    # sorted by groups first, so that equal ones are consecutive
    of_pairs, _ = torch.stack([groups, histories]).unique(dim=1)
    different, counts = of_pairs.unique_consecutive(return_counts=True)
    for group in different[counts > 1]:  # its nodes differ in their histories
        # sorted, as nodes are numbered group after group
        ends = torch.searchsorted(groups, torch.stack([group, group + 1]))
        members = slice(*ends.tolist())
        which, place = histories[members].unique(return_inverse=True)
        # rows (-1, number); other constants come as real and imaginary parts
        tags = torch.full_like(which, -1)
        functions = tracer.constant_nodes(torch.stack([tags, which], dim=1))
        tracer.edges(None, functions[place], left[members], "spread")


def _histories(tracer: Tracer) -> Tensor:
    """A number (nodes,) for the sequence of functions that was applied to each node."""
    nodes = tracer.nodes
    numbers: dict[str, int] = {}
    histories = torch.zeros(nodes.count, dtype=torch.long)
    for labels, _, function in tracer.applied_functions:
        if function is None:
            continue
        number = numbers.setdefault(function, len(numbers) + 1)
        # unified nodes occur twice, and write the same number
        present = nodes.find(labels)
        # a base above the number of functions, until int64 overflows
        histories[present] = histories[present] * 1_000_003 + number
    return histories


def with_copies(tracer: Tracer, blocks: Sequence[Block]) -> list[Block]:
    """Gives a weight copied sources if another weight of other paths has the same ends.

    A x + B mean(x) has two weights from and to the same neurons, as has A x + B sin(x).
    Exchanging A and B changes the function; copies of the nodes between x and B express
    that in the graph.
    """
    with_copied_sources = []
    before: dict[tuple, dict[int, list[Block]]] = {}  # by their kind and a source
    copies = {}
    for block in blocks:
        if block.view is None:
            with_copied_sources.append(block)
            continue
        sources = _sources(block)
        # each end is in one group, that of its first node
        ends = torch.stack([sources[0], block.targets[0]])
        groups = tracer.nodes.group_of(ends).tolist()
        # edges that differ in these are not exchanged
        kind = (*groups, block.kind, block.slot_shape)
        # not all blocks of a kind, as those of a loop mostly have sources of their own
        of_kind = before.setdefault(kind, {})
        same_sources = [of_kind.setdefault(source, []) for source in sources.tolist()]
        # each once, although it shares many sources
        others = {id(other): other for other in chain(*same_sources)}.values()
        if not any(_is_other_use(block, other) for other in others):
            for blocks_of_source in same_sources:
                blocks_of_source.append(block)
            with_copied_sources.append(block)
            continue
        # weights of the same path share their copies
        key = (block.path, *sources.tolist())
        if key not in copies:
            n = len(sources)
            copies[key] = tracer.nodes.new(f"{block.path[0]}.copy", n, "copy")
            copy = Block(None, sources, copies[key], (n, 1, 1), (), "copy", block.path)
            with_copied_sources.append(copy)
        with_copied_sources.append(replace(block, sources=copies[key]))
    return with_copied_sources


def _is_other_use(a: Block, b: Block) -> bool:
    """Whether two blocks differ in their paths, but share targets."""
    return a.path != b.path and bool(torch.isin(a.targets, b.targets).any())


def _one_for_each_parameter(tracer: Tracer, biases: Sequence[Block]) -> list[Block]:
    """Joins pieces of a parameter that are features of the same nodes, such as the rows
    of a table, as slots.

    At uneven distances the nodes are pinned, as the graph contains no order of pieces.
    """
    alike = defaultdict(list)
    for bias in biases:
        # rows of a table differ only in the offset
        layout = replace(_view(bias), offset=0)
        alike[layout, bias.kind, *bias.targets.tolist()].append(bias)
    joined: list[Block] = []
    for (part, *_), pieces in alike.items():
        offsets = sorted({_view(piece).offset for piece in pieces})
        if len(offsets) == 1:
            joined += pieces
            continue
        step = offsets[1] - offsets[0]
        n, *shape = part.shape
        stride, *strides = part.strides
        slots = (len(offsets), *shape)
        view = View(part.parameter, (n, *slots), (stride, step, *strides), offsets[0])
        is_even = offsets == list(range(offsets[0], offsets[-1] + 1, step))
        numel = tracer.parameters[part.parameter].numel
        # steps shorter than a piece make pieces overlap
        if is_even and count_elements(view, numel) == view.numel:
            joined.append(replace(pieces[0], view=view, slot_shape=slots))
        else:
            tracer.pin(pieces[0].targets)
            joined += pieces
    return joined


def _sources(block: Block) -> Tensor:
    assert block.sources is not None, "edges have sources"
    return block.sources


def _view(block: Block) -> View:
    assert block.view is not None, "features are elements of parameters"
    return block.view


def _ends(block: Block) -> list[Tensor]:
    return not_none(block.sources, block.targets)


class _Groups:
    """The groups of a graph, and the places of nodes in them."""

    def __init__(self, nodes: Nodes, builder: GraphBuilder, blocks: Sequence[Block]):
        """Adds the groups of all ends of the blocks."""
        self.nodes = nodes
        self.sizes, self.group_of, self.place_of = nodes.places()
        self.number: dict[int, int] = {}
        used = {self._group(end) for block in blocks for end in _ends(block)}
        for old in sorted(used):
            name, kind = nodes.names[old], nodes.kinds[old]
            self.number[old] = builder.add_group(name, self.sizes[old], kind)

    def _group(self, end: Tensor) -> int:
        """The group of all nodes at an end of a block."""
        groups = self.group_of[end]
        assert same_along(groups, 0), "an end of a block lies in one group"
        return int(groups[0])

    def edge_block(self, block: Block) -> EdgeBlock:
        groups, rows, columns = block.shape
        source, source_index = self.locate(_sources(block))
        target, target_index = self.locate(block.targets)
        return EdgeBlock(
            block.view,
            source,
            target,
            (groups, rows, columns),
            slot_shape=block.slot_shape,
            kind=block.kind,
            source_index=source_index,
            target_index=target_index,
        )

    def bias(self, block: Block) -> Bias:
        group, index = self.locate(block.targets)
        return Bias(_view(block), group, block.slot_shape, block.kind, index)

    def locate(self, end: Tensor) -> tuple[int, Index]:
        """The group of nodes and their places in it; None for all, in their order."""
        old = self._group(end)
        places = tuple(self.place_of[end].tolist())
        is_all = places == tuple(range(self.sizes[old]))
        return self.number[old], None if is_all else places

    def marked(self, mark: Mark) -> set[int]:
        """The groups of all nodes with a mark."""
        return self.of(self.nodes.marked(mark))

    def of(self, labels: Tensor) -> set[int]:
        """The groups in the graph of all nodes among labels."""
        groups = set(self.group_of[labels[labels > 0]].unique().tolist())
        # the graph has only groups of ends of blocks
        return {self.number[old] for old in groups & self.number.keys()}


def with_unused_rows(
    specs: Sequence[ParameterSpec], blocks: Sequence[Block]
) -> list[Block]:
    """Blocks whose slots have all rows of a parameter, also the unused ones.

    A longer input would add the other rows of a positional table to the same neurons.
    A parameter that is used in several views stays as it is.
    """
    views = defaultdict(set)
    for block in blocks:
        if block.view is not None:
            views[block.view.parameter].add(block.view)
    completed = []
    for block in blocks:
        view = block.view
        # rows of a matrix are neurons, not slots
        is_matrix = max(block.shape[1:], default=1) > 1
        if view is not None and not is_matrix and len(views[view.parameter]) == 1:
            axes = len(block.shape)
            spec = specs[view.parameter]
            for wider in _wider(spec, view, axes):
                is_whole = wider.numel == spec.numel == wider.last + 1 > view.numel
                if is_whole and count_elements(wider, spec.numel) == spec.numel:
                    view = wider
                    break
            block = replace(block, view=view, slot_shape=view.shape[axes:])
        completed.append(block)
    return completed


def _wider(spec: ParameterSpec, view: View, axes: int) -> Iterator[View]:
    """Views with all rows along one dimension of the parameter.

    axes: the number of the view's dimensions that are those of nodes.
    """
    for size, stride in zip(spec.shape, contiguous_strides(spec.shape), strict=True):
        offset = view.offset - (view.offset // stride % size) * stride
        # of a single row there is no axis yet
        yield View(view.parameter, (*view.shape, size), (*view.strides, stride), offset)
        for axis in range(axes, len(view.shape)):
            if view.strides[axis] == stride and view.shape[axis] < size:
                shape = (*view.shape[:axis], size, *view.shape[axis + 1 :])
                yield replace(view, shape=shape, offset=offset)


def count_elements(view: View, numel: int) -> int:
    """How many different elements of a parameter of `numel` a view has."""
    return len(view.read(torch.arange(numel)[None, :, None]).unique())
