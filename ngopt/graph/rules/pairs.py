"""Sums, differences and products of neurons that meet, entry by entry."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.tracing.tracer import Applied, Tracer
from ngopt.graph.tracing.values import Neurons, in_order, repeats_any, unique_pairs


class Meeting(NamedTuple):
    """Which nodes of two tensors meet.

    left, right: their labels, cut where both repeat. both: where two different nodes meet.
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
    def of(cls, tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Meeting:
        shape = torch.broadcast_shapes(a.shape, b.shape)
        whole = (x.labels.expand(shape) for x in (a, b))
        left, right = tracer.nodes.find_all(*whole)
        is_pair = (left > 0) & (right > 0)
        itself = left[is_pair & (left == right)].unique()
        if len(itself):  # a neuron may meet a function of itself
            tracer.applied.append(Applied(itself, f"{call.name} of several", None))
        both = is_pair & (left != right)
        pairs, which = unique_pairs(left[both], right[both])
        return cls(left, right, both, pairs, which, shape)

    def result(self, nodes: Tensor, is_pristine: bool = False) -> Neurons:
        """A node for each pair; where a node meets itself or a constant it stays."""
        labels = torch.maximum(self.left, self.right)
        labels[self.both] = nodes[self.which]
        return Neurons(labels.expand(self.shape), is_pristine)


def sum_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    """A sum has the nodes of the newer layer, with edges of value 1 from those of the older one.

    Two layers that are only summed share their nodes. Where these meet several of the older layer,
    or older and newer ones are mixed, sums are nodes of their own.
    """
    met = Meeting.of(tracer, call, a, b)
    older, newer = met.pairs
    if (older >= newer).any():
        older, newer = newer, older
    is_mixed = (older > newer).any() or torch.isin(older, newer).any()
    if is_mixed or repeats_any(newer):
        return _of_pairs(tracer, call, met, "neuron")
    users = [len(operand.users) for operand in call.all_input_nodes]
    are_only_summed = users == [1, 1] and a.is_pristine and b.is_pristine
    if are_only_summed and len(older) and not repeats_any(older):
        tracer.nodes.unify(older, newer)
        return met.result(tracer.nodes.find(newer), is_pristine=True)
    tracer.edges(None, older, newer, "residual")
    return met.result(newer)


def difference_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    """Differences are nodes that know which side is subtracted."""
    return _of_pairs(tracer, call, Meeting.of(tracer, call, a, b), "neuron")


def product_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    return _of_pairs(tracer, call, Meeting.of(tracer, call, a, b), "product")


def _of_pairs(tracer: Tracer, call: Node, met: Meeting, kind: str) -> Neurons:
    """New nodes with edges of value 1 from the two sides, which are told apart."""
    left, right = met.pairs
    nodes = tracer.nodes.new(call.name, len(left), kind, met.pairs)
    tracer.edges(None, left, nodes, "left")
    tracer.edges(None, right, nodes, "right")
    return met.result(nodes)


def used_by(tracer: Tracer, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges of value 1 from sources[i] to targets[i], apart for each time a source comes.

    A neuron is used by one target after the other so, as keys are by several heads of queries.
    """
    _, which = in_order(sources)
    order = which.argsort(stable=True)
    counts = which.bincount()
    first = counts.cumsum(0) - counts
    time = torch.empty_like(which)
    time[order] = torch.arange(len(which)) - first[which[order]]
    for number in time.unique():
        part = time == number
        tracer.edges(None, sources[part], targets[part], kind)
