"""How neurons are used: by which head of an attention, on which side of a product.

Rows of a weight whose neurons are used differently are separate matrices: queries, keys
and values, each head of them, the two halves of a gated linear unit.
"""

import numpy as np

from ngopt.graph.groups_and_blocks import EdgeBlock, Index, is_diagonal
from ngopt.graph.neural_graph import NeuralGraph

DENSE_KINDS = ("weight", "flatten", "recurrent")
"""Kinds of edges of linear maps, including one-to-one maps (depthwise convolutions)."""


def is_dense(block: EdgeBlock) -> bool:
    """Whether a block of edges is a piece of a matrix, or a factor of one."""
    if block.view is None:
        return False
    groups, n_target, n_source = block.shape
    factor = block.kind == "scale" and groups == 1 and min(n_target, n_source) > 1
    return block.kind in DENSE_KINDS or factor


def mixes_neurons(block: EdgeBlock) -> bool:
    """Whether a block is dense and not from one neuron to one neuron."""
    return is_dense(block) and not is_diagonal(block)


def is_gated(graph: NeuralGraph, group: int, slot_shape: tuple[int, ...]) -> bool:
    """Whether a group is a recurrent layer whose gates are slots of this shape."""
    into = graph.blocks_into(group)
    recurrent = [block for block in into if block.kind == "recurrent" and block.view]
    return any(block.slot_shape == slot_shape for block in recurrent)


def made_by_weights(graph: NeuralGraph) -> set[int]:
    """Groups of neurons that are results of matrices."""
    return {block.target for block in graph.blocks if mixes_neurons(block)}


def usage(graph: NeuralGraph, heads_differ: bool = True) -> list[np.ndarray]:
    """A label for each neuron of every group, (n,): equal labels are equal uses.

    Products define how their factors are used. Uses propagate back to the weights
    through functions of one neuron, or of pairs (rotary embeddings), and through norms.

    heads_differ: whether use by another head of an attention is another use.
    """
    from_weights = made_by_weights(graph)
    labels = _Labels(graph, heads_differ)
    # blocks are in the order of the forward pass
    for block in reversed(graph.blocks):
        _, n_target, n_source = block.shape
        if block.source == block.target or n_source != 1:
            continue
        is_product = graph.groups[block.target].kind == "product"
        is_factor = is_product and block.kind in ("left", "right")
        if is_factor and not _is_normalised(graph, block):
            labels.add(block, labels.of_factors(block))
        elif n_target == 1 and (
            is_factor or block.kind == "residual" or block.target not in from_weights
        ):
            labels.add(block, labels.of_groups[block.target][labels.targets(block)])
    labels.complete()
    return labels.of_groups


def _is_normalised(graph: NeuralGraph, block: EdgeBlock) -> bool:
    """Whether the other factor of a product is pooled from the source of this one."""
    for factor in graph.blocks_into(block.target):
        if factor.kind in ("left", "right") and factor.source != block.source:
            pools = graph.blocks_into(factor.source)
            if any(x.kind == "pool" and x.source == block.source for x in pools):
                return True
    return False


class _Labels:
    """Labels of neurons, 0 where no use is known; a new label for each combination."""

    def __init__(self, graph: NeuralGraph, heads_differ: bool):
        self.graph = graph
        self.of_groups: list[np.ndarray] = []
        self.heads: dict[int, np.ndarray] = {}  # of the neurons of products
        self._labels: dict[tuple, int] = {}
        for number, group in enumerate(graph.groups):
            self.of_groups.append(np.zeros(group.size, np.int64))
            if group.kind == "product":
                self.heads[number] = np.full(group.size, -1)
        if not heads_differ:
            return
        heads = _heads(graph)
        scores = _scores(graph, heads)
        # the head that products are summed for, or that weights them
        for block in graph.blocks:
            _, n_target, n_source = block.shape
            source, target = block.source, block.target
            if block.kind == "pool" and target in heads and source in self.heads:
                numbers = np.repeat(self.targets(block), n_source)
                self.heads[source][self._sources(block)] = numbers
            is_weight = block.kind in ("left", "right") and source in scores
            if is_weight and target in self.heads and n_target > 1:
                numbers = np.repeat(self._sources(block), n_target)
                self.heads[target][self.targets(block)] = numbers
        self._share_heads()

    def _share_heads(self) -> None:
        """Gates of results of attention, and gated values, are of their heads."""
        forward, back = [], []
        for block in self.graph.blocks:
            is_factor = block.kind in ("left", "right") and block.shape[1:] == (1, 1)
            if is_factor and {block.source, block.target} <= self.heads.keys():
                source = self.heads[block.source], self._sources(block)
                target = self.heads[block.target], self.targets(block)
                forward.append((source, target))
                back.append((target, source))
        for (giver, given), (taker, taken) in (*forward, *reversed(back)):
            taker[taken] = np.maximum(taker[taken], giver[given])

    def _sources(self, block: EdgeBlock) -> np.ndarray:
        return neurons(block.source_index, self.graph.groups[block.source].size)

    def targets(self, block: EdgeBlock) -> np.ndarray:
        return neurons(block.target_index, self.graph.groups[block.target].size)

    def of_factors(self, block: EdgeBlock) -> np.ndarray:
        """Labels of how the targets of a block, products, use its sources.

        A factor of several products, such as a gate of all neurons of a head, is used
        in the same way in all heads.
        """
        count, n_target, _ = block.shape
        if n_target > 1:
            return np.full(count, self._label((block.target, block.kind, None)))
        head_of_targets = self.heads[block.target][self.targets(block)]
        heads, which = np.unique(head_of_targets, return_inverse=True)
        uses = [(block.target, block.kind, head) for head in heads.tolist()]
        return np.array(list(map(self._label, uses)), np.int64)[which]

    def add(self, block: EdgeBlock, used: np.ndarray) -> None:
        """Combines the labels of a block's sources with one more use."""
        known = self.of_groups[block.source]
        sources = self._sources(block)
        labels_and_uses = np.stack([known[sources], used])
        pairs, which = np.unique(labels_and_uses, axis=1, return_inverse=True)
        labels = []
        for old, new in pairs.T.tolist():
            is_combined = old and new and old != new
            labels.append(self._label((old, new)) if is_combined else old or new)
        known[sources] = np.array(labels, np.int64)[which.ravel()]

    def complete(self) -> None:
        """Labels neurons without a label by the groups that they lead to, where other
        neurons of their group have one."""
        groups = self.of_groups
        are_mixed = [0 < np.count_nonzero(known) < len(known) for known in groups]
        have_none = [known == 0 for known in groups]
        for block in self.graph.blocks:
            source = block.source
            if are_mixed[source] and block.target != source and block.shape[2] == 1:
                label = self._label((block.target, block.kind, "only"))
                has_none = have_none[source][self._sources(block)]
                self.add(block, np.where(has_none, label, 0))

    def _label(self, key: tuple) -> int:
        """The label of a use (product, side, head), or of a pair of labels."""
        return self._labels.setdefault(key, len(self._labels) + 1)


def _heads(graph: NeuralGraph) -> set[int]:
    """Groups of attention heads: several sums of products, one for each head, that are
    factors of several neurons each.

    The products are of two neurons, or of a neuron and a parameter.
    """
    heads = {i for i, group in enumerate(graph.groups) if group.kind == "head"}
    of_sides = [block for block in graph.blocks if block.kind in ("left", "right")]
    factors = {block.source for block in of_sides if block.shape[1] > 1}
    for block in graph.blocks:
        if block.kind == "pool" and block.shape[0] > 1:
            into = graph.blocks_into(block.source)
            is_scaled = any(x.kind == "scale" and is_diagonal(x) for x in into)
            if not is_scaled and graph.groups[block.source].kind != "product":
                continue
            if not factors.isdisjoint(_scores(graph, {block.target})):
                heads.add(block.target)
    return heads


def _scores(graph: NeuralGraph, heads: set[int]) -> set[int]:
    """Groups of attention heads, and functions of one head each: biases, factors."""
    scores = set(heads)
    for block in graph.blocks:
        is_elementwise = block.shape[1:] == (1, 1) and not is_dense(block)
        is_product = graph.groups[block.target].kind == "product"
        if block.source in scores and is_elementwise and not is_product:
            scores.add(block.target)
    return scores


def neurons(index: Index, size: int) -> np.ndarray:
    """Indices of the neurons of a group in the order of a block."""
    return np.arange(size) if index is None else np.array(index)
