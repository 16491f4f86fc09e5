"""How what a trace found becomes a `NeuralGraph`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ngopt.graph.core import Bias, EdgeBlock, Index, NeuralGraph, View
from ngopt.graph.topology import GraphBuilder
from ngopt.graph.tracing.blocks import blocks_of
from ngopt.graph.tracing.edges import Block
from ngopt.graph.tracing.nodes import Mark, Nodes
from ngopt.graph.tracing.tracer import Tracer


def finish(tracer: Tracer) -> NeuralGraph:
    """The graph of all that was found, now that it is known which nodes are the same."""
    tell_functions_apart(tracer)
    nodes = tracer.nodes
    found = [block for edges in tracer.found for block in blocks_of(edges, nodes)]
    blocks = with_copies(tracer, [block for block in found if block.sources is not None])
    biases = _one_for_each_parameter(tracer, [block for block in found if block.sources is None])
    builder = GraphBuilder(tracer.parameters)
    groups = _Groups(nodes, builder, [*blocks, *biases])
    for block in blocks:
        builder.blocks.append(groups.edge_block(block))
    for bias in biases:
        builder.biases.append(groups.bias(bias))
    _note_functions(tracer, groups, builder)
    fixed = [end for block in (*blocks, *biases) for end in _fixed_ends(block, tracer.fixed)]
    inputs = groups.of([nodes.marked(Mark.INPUT)])
    for number in groups.of([nodes.marked(Mark.PINNED), *fixed]):
        builder.groups[number] = replace(builder.groups[number], is_pinned=True)
    outputs = groups.of([nodes.marked(Mark.OUTPUT)])
    inner = {block.target for block in builder.blocks} | groups.of([nodes.marked(Mark.LEARNED)])
    # a position that leads nowhere is still one among others; a neuron that does so is not needed
    inner = {number for number in inner if builder.groups[number].kind != "position"}
    return builder.build(inputs, outputs, inner - outputs - inputs)


def _note_functions(tracer: Tracer, groups: _Groups, builder: GraphBuilder) -> None:
    applied: dict[int, list[str]] = {}
    for labels, name, _ in tracer.applied:
        if name is None:
            continue
        for number in groups.of([labels]):
            applied.setdefault(number, []).append(name)
    for number, names in applied.items():
        builder.note_functions(number, names)


def _fixed_ends(block: Block, parameters: Collection[int]) -> list[Tensor]:
    """The ends of a block, if it is of one of these parameters."""
    if block.view is None or block.view.parameter not in parameters:
        return []
    return [end for end in (block.sources, block.targets) if end is not None]


def tell_functions_apart(tracer: Tracer) -> None:
    """Adds nodes for functions that not all neurons of a layer went through, with edges to those.

    Behind cat([-x[2:], x[:2]]) the first two neurons of x are no twins of the others.
    """
    nodes = tracer.nodes
    everything = torch.arange(nodes.count)
    numbers: dict[str, int] = {}
    history = torch.zeros_like(everything)
    for labels, _, function in tracer.applied:
        if function is None:
            continue
        number = numbers.setdefault(function, len(numbers) + 1)
        found = nodes.find(labels)
        history[found] = history[found] * 1_000_003 + number
    is_input = torch.isin(everything, nodes.marked(Mark.INPUT))
    present = everything[(nodes.find(everything) == everything) & ~is_input]
    groups = nodes.group_of(present)
    histories = history[present].unique(return_inverse=True)[1]
    pairs = torch.stack([groups, histories]).unique(dim=1)
    mixed, counts = pairs[0].unique_consecutive(return_counts=True)
    for group in mixed[counts > 1]:
        members = groups == group
        which, place = histories[members].unique(return_inverse=True)
        constants = torch.stack([torch.full_like(which, -1), which], dim=1)
        functions = tracer.constant_nodes(constants)
        tracer.edges(None, functions[place], present[members], "spread")


def with_copies(tracer: Tracer, blocks: Sequence[Block]) -> list[Block]:
    """Gives a weight sources of its own where another has the same ends but sees them otherwise.

    A x + B mean(x) has two weights from and to the same neurons, as A x + B sin(x) has. Exchanging
    them changes the function, and only nodes between x and B, the copies, say so.
    """
    found: list[Block] = []
    before: dict[tuple, list[Block]] = {}
    copies: dict[tuple, Tensor] = {}
    for block in blocks:
        if block.view is None:
            found.append(block)
            continue
        sources, targets = block.sources, block.targets
        assert sources is not None, "edges have sources"
        groups = [int(tracer.nodes.group_of(end[0])) for end in (sources, targets)]
        others = before.setdefault((*groups, block.kind, block.slot_shape), [])
        if any(other.path != block.path and _share_an_edge(other, block) for other in others):
            key = (block.path, *sources.tolist())
            if key not in copies:
                n = len(sources)
                copies[key] = tracer.nodes.new(f"{block.path[0]}.copy", n, "copy")
                shape = (n, 1, 1)
                found.append(Block(None, sources, copies[key], shape, (), "copy", block.path))
            block = replace(block, sources=copies[key])
        else:
            others.append(block)
        found.append(block)
    return found


def _share_an_edge(a: Block, b: Block) -> bool:
    """Whether an edge of one has the ends of an edge of the other."""
    assert a.sources is not None and b.sources is not None, "edges have sources"
    shares_source = torch.isin(a.sources, b.sources).any()
    return bool(shares_source and torch.isin(a.targets, b.targets).any())


def _one_for_each_parameter(tracer: Tracer, biases: Sequence[Block]) -> list[Block]:
    """Pieces of a parameter that do the same to the same nodes, as rows of a table, are slots.

    Where they lie at no even distances the nodes are pinned: nothing says which piece comes first.
    """
    alike: dict[tuple, list[Block]] = {}
    for bias in biases:
        assert bias.view is not None, "features are elements of parameters"
        view = bias.view
        key = (view.parameter, bias.kind, *bias.targets.tolist(), view.shape, view.strides)
        alike.setdefault(key, []).append(bias)
    found = []
    for first, *others in alike.values():
        views = [bias.view for bias in (first, *others) if bias.view is not None]
        offsets = sorted({view.offset for view in views})
        steps = {b - a for a, b in pairwise(offsets)}
        view = _stacked(views[0], offsets) if len(steps) == 1 else None
        if view is not None and _has_all_once(view, tracer.parameters[view.parameter].numel):
            found.append(replace(first, view=view, slot_shape=view.shape[1:]))
        else:
            found += [first, *others]
            tracer.pin(*([first.targets] if steps else []))
    return found


def _stacked(view: View, offsets: Sequence[int]) -> View:
    """A view (n, ...) and others like it at even distances, as (n, views, ...)."""
    (n, *shape), (stride, *strides) = view.shape, view.strides
    step = offsets[1] - offsets[0]
    return View(view.parameter, (n, len(offsets), *shape), (stride, step, *strides), offsets[0])


def _has_all_once(view: View, numel: int) -> bool:
    """Whether no element of a parameter is in a view twice."""
    numbers = torch.arange(numel)[None, :, None]
    return view.read(numbers).unique().numel() == view.numel


class _Groups:
    """The groups of a graph, and which nodes are where in them."""

    def __init__(self, nodes: Nodes, builder: GraphBuilder, blocks: Sequence[Block]):
        """Adds the groups that any end of the blocks is in."""
        self.sizes, self.group_of, self.place_of = nodes.places()
        ends = [end for block in blocks for end in (block.sources, block.targets)]
        used = torch.cat([torch.arange(0), *(end for end in ends if end is not None)])
        self.number: dict[int, int] = {}
        for old in self.group_of[used].unique().tolist():
            name, kind = nodes.names[old], nodes.kinds[old]
            self.number[old] = builder.add_group(name, self.sizes[old], kind)

    def edge_block(self, block: Block) -> EdgeBlock:
        assert block.sources is not None, "edges have sources"
        groups, rows, columns = block.shape
        source, source_index = self.locate(block.sources)
        target, target_index = self.locate(block.targets)
        return EdgeBlock(
            block.view,
            source,
            target,
            (groups, rows, columns),
            block.slot_shape,
            block.kind,
            source_index,
            target_index,
        )

    def bias(self, block: Block) -> Bias:
        assert block.view is not None, "features are elements of parameters"
        group, index = self.locate(block.targets)
        return Bias(block.view, group, block.slot_shape, block.kind, index)

    def locate(self, nodes: Tensor) -> tuple[int, Index]:
        """The group of nodes and their places in it, None if these are all in their order."""
        old = int(self.group_of[nodes[0]])
        assert (self.group_of[nodes] == old).all(), "an end of a block lies in one group"
        index = tuple(self.place_of[nodes].tolist())
        return self.number[old], None if index == tuple(range(self.sizes[old])) else index

    def of(self, labels: Iterable[Tensor]) -> set[int]:
        """The groups of all nodes among labels, as far as they are in the graph."""
        found = {
            old for nodes in labels for old in self.group_of[nodes[nodes > 0]].unique().tolist()
        }
        return {self.number[old] for old in found if old in self.number}
