"""How neurons are used: by which head of an attention, on which side of a product.

Rows of a weight whose neurons are used differently are matrices of their own: queries,
keys and values, each head of them, the two halves of a gated linear unit.
"""

from __future__ import annotations

import numpy as np

from ngopt.graph.groups_and_blocks import EdgeBlock, Index, is_diagonal
from ngopt.graph.neural_graph import NeuralGraph

DENSE_KINDS = ("weight", "flatten", "recurrent")
"""Kinds of edges that linear maps have, also of one to one, as depthwise convolutions.
"""


def is_dense(block: EdgeBlock) -> bool:
    """Whether a block of edges is a piece of a matrix: that of a linear map, or a
    factor of one."""
    if block.view is None:
        return False
    groups, n_target, n_source = block.shape
    factor = block.kind == "scale" and groups == 1 and min(n_target, n_source) > 1
    return block.kind in DENSE_KINDS or factor


def mixes_neurons(block: EdgeBlock) -> bool:
    """Whether a block is dense and not from one neuron to one neuron."""
    return is_dense(block) and not is_diagonal(block)


def usage(graph: NeuralGraph) -> list[np.ndarray]:
    """For every group a number for each neuron, (n,): equal ones are used alike.

    Products say how they use their factors. Between them and the weights behind neurons
    may be whatever works on one neuron at a time, or on pairs, as a rotary embedding
    does.
    """
    made_by_weights = {block.target for block in graph.blocks if mixes_neurons(block)}
    labels = _Labels(graph)
    # they are in the order of the forward pass
    for block in reversed(graph.blocks):
        if block.source == block.target or block.shape[1:] != (1, 1):
            continue
        if graph.groups[block.target].kind == "product" and block.kind in (
            "left",
            "right",
        ):
            labels.add(block, labels.of_factors(block))
        elif block.target not in made_by_weights:
            labels.add(block, labels.of_targets(block))
    return labels.found


class _Labels:
    """Numbers of neurons, 0 where nothing is known; a new number for each new
    combination."""

    def __init__(self, graph: NeuralGraph):
        self.graph = graph
        self.found = [np.zeros(group.size, np.int64) for group in graph.groups]
        self.numbers: dict[tuple, int] = {}
        self.scores = _scores(graph)
        products = [
            n for n, group in enumerate(graph.groups) if group.kind == "product"
        ]
        self.heads = {n: np.full(graph.groups[n].size, -1) for n in products}
        for block in graph.blocks:
            self._find_heads(block)

    def _find_heads(self, block: EdgeBlock) -> None:
        """Notes down the head that products are summed for, or that weighs them."""
        _, n_target, n_source = block.shape
        source = self.graph.groups[block.source]
        target = self.graph.groups[block.target]
        if (
            block.kind == "pool"
            and target.kind == "head"
            and block.source in self.heads
        ):
            head = np.repeat(neurons(block.target_index, target.size), n_source)
            self.heads[block.source][neurons(block.source_index, source.size)] = head
        elif (
            block.kind == "left"
            and block.source in self.scores
            and block.target in self.heads
        ):
            head = np.repeat(neurons(block.source_index, source.size), n_target)
            self.heads[block.target][neurons(block.target_index, target.size)] = head

    def of_factors(self, block: EdgeBlock) -> np.ndarray:
        """How the targets of a block, products, use its sources."""
        products = neurons(block.target_index, self.graph.groups[block.target].size)
        heads, which = np.unique(
            self.heads[block.target][products], return_inverse=True
        )
        keys = [(block.target, block.kind, head) for head in heads.tolist()]
        return self._numbers(keys)[which]

    def of_targets(self, block: EdgeBlock) -> np.ndarray:
        targets = neurons(block.target_index, self.graph.groups[block.target].size)
        return self.found[block.target][targets]

    def add(self, block: EdgeBlock, used: np.ndarray) -> None:
        """Combines what is known of a block's sources with one more use of them."""
        known = self.found[block.source]
        places = neurons(block.source_index, len(known))
        before = known[places]
        pairs, which = np.unique(np.stack([before, used]), axis=1, return_inverse=True)
        numbers = self._numbers(list(zip(*pairs.tolist(), strict=True)))
        known[places] = numbers[which.ravel()]

    def _numbers(self, keys: list[tuple]) -> np.ndarray:
        """A number for each use (products, side, head), or pair of numbers that are
        combined."""
        found = []
        for key in keys:
            known = set(key) - {0}
            if len(key) == 2 and len(known) < 2:  # nothing old, or nothing new
                found.append(next(iter(known), 0))
            else:
                found.append(self.numbers.setdefault(key, len(self.numbers) + 1))
        return np.array(found, np.int64)


def _scores(graph: NeuralGraph) -> set[int]:
    """Groups of heads, and what is made of them one by one: biases added, factors
    applied."""
    found = {
        number for number, group in enumerate(graph.groups) if group.kind == "head"
    }
    for block in graph.blocks:
        one_to_one = (
            block.shape[1:] == (1, 1) and graph.groups[block.target].kind != "product"
        )
        if block.source in found and one_to_one and not is_dense(block):
            found.add(block.target)
    return found


def neurons(index: Index, size: int) -> np.ndarray:
    """The numbers of neurons of a group in a block's order."""
    return np.arange(size) if index is None else np.array(index)
