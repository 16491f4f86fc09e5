"""Edges become blocks in which no node is at an end twice, with the same edges."""

from collections import Counter
from math import prod

import pytest
import torch

from ngopt.graph.groups_and_blocks import View, contiguous_strides
from ngopt.graph.tracing.blocks import Block, Edges, blocks_of
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.values import Elements
from tests.zoo import zoo_graph

OFFSET = 3  # of a weight's first element in its parameter


def one_block(sources, targets, shape, slot_shape=(), constant=False):
    """All edges as a block, whose nodes may repeat."""
    full = (*shape, *slot_shape)
    view = None if constant else View(0, full, contiguous_strides(full), OFFSET)
    # 0 is no neuron
    sources = 1 + torch.tensor(sources)
    targets = 1 + torch.tensor(targets)
    return Block(view, sources, targets, shape, slot_shape, "weight", ())


def found_blocks(sources, targets, shape, slot_shape=(), constant=False):
    """The blocks that are found among the same edges, all of whose nodes are of one
    group."""
    g, t, s = shape
    full = (*shape, *slot_shape)
    layout = torch.empty(OFFSET + prod(full), device="meta")[OFFSET:].view(full)
    sources = 1 + torch.tensor(sources).reshape(g, 1, s)
    targets = 1 + torch.tensor(targets).reshape(g, t, 1)
    edges = Edges(
        None if constant else Elements(0, layout), sources, targets, "weight", ()
    )
    return list(blocks_of(edges, nodes_of_one_group()))


def nodes_of_one_group():
    nodes = Nodes()
    nodes.new("all", 10)
    return nodes


def edges_of(block):
    """(source, target) of every edge, with its elements where it has some."""
    groups, n_targets, n_sources = block.shape
    sources = block.sources.reshape(groups, 1, n_sources).expand(block.shape).flatten()
    targets = block.targets.reshape(groups, n_targets, 1).expand(block.shape).flatten()
    ends = list(zip(sources.tolist(), targets.tolist(), strict=True))
    if block.view is None:
        return ends
    numbers = torch.arange(1000.0)[None, :, None]
    elements = block.view.read(numbers).reshape(len(ends), -1).tolist()
    rows = zip(ends, elements, strict=True)
    return [(*end, element) for end, row in rows for element in row]


def assert_no_node_repeats(block):
    for nodes in (block.sources, block.targets):
        assert nodes.unique().numel() == len(nodes)


# sources, targets, shape, slot shape; the shapes and slot shapes of the blocks that
# these become
BLOCKS = {
    "no repeats": ([0, 1, 2], [3, 4], (1, 2, 3), (2, 2), [((1, 2, 3), (2, 2))]),
    "rows one by one": ([0, 1], [3, 3, 3, 4, 4, 4], (1, 6, 2), (), [((1, 2, 2), (3,))]),
    "rows in turn": (
        [0, 1], [3, 4, 3, 4, 3, 4], (1, 6, 2), (5,), [((1, 2, 2), (3, 5))],
    ),
    "rows and columns": ([0, 1, 0, 1], [3, 3], (1, 2, 4), (), [((1, 1, 2), (2, 2))]),
    "groups": (
        [0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5], (6, 1, 1), (), [((3, 1, 1), (2,))],
    ),
    "whole groups": (
        [0, 1, 2, 3] * 2, [4, 5] * 2, (4, 1, 2), (2,), [((2, 1, 2), (2, 2))],
    ),
    "one to several": (
        [0, 1, 0, 1], [3, 4, 5, 6], (4, 1, 1), (2,), [((2, 2, 1), (2,))],
    ),
    "several to one": ([0, 1, 2, 3], [4, 4, 5, 5], (4, 1, 1), (), [((2, 1, 2), ())]),
    "irregular rows": (
        [0, 1], [3, 4, 3, 3], (1, 4, 2), (),
        [((1, 2, 2), ()), ((1, 1, 2), ()), ((1, 1, 2), ())],
    ),
    "irregular groups": (
        [0, 1, 1, 2], [3, 3, 4, 5], (2, 2, 2), (), [((1, 1, 2), (2,)), ((1, 2, 2), ())],
    ),
    "to itself": ([0, 1, 0, 1], [0, 1, 0, 1], (4, 1, 1), (), [((2, 1, 1), (2,))]),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_edges_keep_their_ends_and_elements(name):
    sources, targets, shape, slot_shape, expected = BLOCKS[name]
    block = one_block(sources, targets, shape, slot_shape)
    pieces = found_blocks(sources, targets, shape, slot_shape)
    edges = Counter(edge for piece in pieces for edge in edges_of(piece))
    assert edges == Counter(edges_of(block))
    for piece in pieces:
        assert piece.view.shape == (*piece.shape, *piece.slot_shape)
        assert_no_node_repeats(piece)
    assert [(piece.shape, piece.slot_shape) for piece in pieces] == expected


@pytest.mark.parametrize("name", BLOCKS)
def test_edges_of_value_1_stay_once(name):
    block = one_block(*BLOCKS[name][:3], constant=True)
    pieces = found_blocks(*BLOCKS[name][:3], constant=True)
    edges = sorted(edge for piece in pieces for edge in edges_of(piece))
    assert edges == sorted(set(edges_of(block)))
    for piece in pieces:
        assert_no_node_repeats(piece)


@pytest.mark.parametrize(
    ("nodes", "pieces"),
    [
        ([5, 6, 7], [([5, 6, 7], (2,))]),
        ([5, 6, 5, 6, 5, 6], [([5, 6], (3, 2))]),
        ([5, 5, 6, 6], [([5, 6], (2, 2))]),
        ([5, 6, 6, 5, 7], [([5, 6], (2,)), ([6, 5, 7], (2,))]),
    ],
)
def test_elements_of_a_bias_keep_their_nodes(nodes, pieces):
    n = len(nodes)
    layout = torch.empty(2, n, device="meta").T
    edges = Edges(Elements(0, layout), None, torch.tensor(nodes), "bias", ())
    found = list(blocks_of(edges, nodes_of_one_group()))
    assert [(piece.targets.tolist(), piece.slot_shape) for piece in found] == pieces
    numbers = torch.arange(2 * n)[None, :, None]
    placed = set()
    for piece in found:
        elements = piece.view.read(numbers).reshape(len(piece.targets), -1)
        for node, row in zip(piece.targets.tolist(), elements.tolist(), strict=True):
            placed |= {(node, element) for element in row}
    assert placed == {(nodes[k % n], k) for k in range(2 * n)}


def test_learned_queries_are_slots_of_their_features():
    graph = zoo_graph("seeds")
    (seeds,) = (b for b in graph.biases if b.kind == "value")
    assert (seeds.view.shape, seeds.view.strides, seeds.index) == ((4, 2), (1, 4), None)
    (places,) = (b for b in graph.weights if b.kind == "scale")
    # every entry of the input is a node
    assert (places.shape, places.slot_shape) == ((3, 1, 5), ())
