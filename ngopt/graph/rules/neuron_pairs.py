"""Sums, differences and products of neurons that meet, entry by entry."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import Neurons, has_duplicates, unique_pairs


class NeuronPairs(NamedTuple):
    """Which nodes of two tensors meet.

    left, right: their labels, cut where both repeat. both: where two different nodes
    meet.
    pairs: these nodes, (2, n). which: the pair at every place of `both`.
    shape: of the result.
    """

    left: Tensor
    right: Tensor
    both: Tensor
    pairs: Tensor
    which: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> NeuronPairs:
        shape = torch.broadcast_shapes(a.shape, b.shape)
        whole = [x.labels.expand(shape) for x in (a, b)]
        left, right = tracer.nodes.find_all(*whole)
        is_pair = (left > 0) & (right > 0)
        is_same = left == right
        itself = left[is_pair & is_same].unique()
        if len(itself):  # a neuron may meet a function of itself
            name = f"{call.name} of several"
            tracer.applied_functions.append(AppliedFunction(itself, name, None))
        both = is_pair & ~is_same
        pairs, which = unique_pairs(left[both], right[both])
        return cls(left, right, both, pairs, which, shape)

    def result(self, nodes: Tensor, is_pristine: bool = False) -> Neurons:
        """A node for each pair; where a node meets itself or a constant it stays."""
        # no neuron is 0 or -1: the greater label is the neuron, where there is one
        labels = torch.maximum(self.left, self.right)
        labels[self.both] = nodes[self.which]
        return Neurons(labels.expand(self.shape), is_pristine)


def sum_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    """A sum has the nodes of the newer layer, with edges of value 1 from those of the
    older one.

    Two layers that are only summed share their nodes. Where these meet several of the
    older layer, or older and newer ones are mixed, sums are nodes of their own.
    """
    met = NeuronPairs.of(tracer, call, a, b)
    older, newer = met.pairs
    # numbers grow with each layer, and nodes that are unified have their lowest
    if (older >= newer).any():
        older, newer = newer, older
    # a layer plus itself reversed, as in dueling: no side is the older one
    is_mixed = (older > newer).any() or torch.isin(older, newer).any()
    # the value of dueling meets three advantages, and cannot be all three sums
    if is_mixed or has_duplicates(newer):
        nodes = pair_nodes(tracer, call.name, met.pairs, "neuron")
        return met.result(nodes)
    if _are_only_summed(call, a, b) and len(older) and not has_duplicates(older):
        tracer.nodes.unify(older, newer)
        nodes = tracer.nodes.find(newer)
        return met.result(nodes, is_pristine=True)
    tracer.edges(None, older, newer, "residual")
    return met.result(newer)


def _are_only_summed(call: Node, a: Neurons, b: Neurons) -> bool:
    """Whether two layers that weights make go nowhere but into their sum."""
    # what goes elsewhere, too, is not the sum there, as x in equilibrium
    users = [len(operand.users) for operand in call.all_input_nodes]
    return users == [1, 1] and a.is_pristine and b.is_pristine


def difference_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    """Differences are nodes that know which side is subtracted."""
    met = NeuronPairs.of(tracer, call, a, b)
    nodes = pair_nodes(tracer, call.name, met.pairs, "neuron")
    return met.result(nodes)


def product_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    met = NeuronPairs.of(tracer, call, a, b)
    nodes = pair_nodes(tracer, call.name, met.pairs, "product")
    return met.result(nodes)


def pair_nodes(tracer: Tracer, name: str, pairs: Tensor, kind: str) -> Tensor:
    """New nodes (n,) for pairs (2, n).

    Edges of value 1 from the two sides, which are told apart.
    """
    left, right = pairs
    # products of a neuron with several entries of the input may become one, as in
    # mixture
    nodes = tracer.nodes.new(name, len(left), kind, pairs)
    tracer.edges(None, left, nodes, "left")
    tracer.edges(None, right, nodes, "right")
    return nodes


def edges_per_use(tracer: Tracer, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges of value 1 from sources[i] to targets[i], apart for each time a source
    comes.

    A neuron is used by one target after the other so, as keys are by several heads of
    queries.
    """
    order = sources.argsort(stable=True)
    _, counts = sources[order].unique_consecutive(return_counts=True)
    # where in the order each source first comes
    first = counts.cumsum(0) - counts
    place = torch.arange(len(sources))
    time = torch.empty_like(sources)
    # how often the same source came before
    time[order] = place - first.repeat_interleave(counts)
    for number in time.unique():
        part = time == number
        tracer.edges(None, sources[part], targets[part], kind)
