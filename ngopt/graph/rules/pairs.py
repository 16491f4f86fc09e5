"""Sums, differences and products of neurons that meet, entry by entry."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.edges import edges_between
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Value, unique_pairs


class Meeting(NamedTuple):
    """Which nodes of two tensors meet.

    left, right: their labels, cut where both repeat. both: where two different nodes meet. pairs: these
    nodes, (2, n). which: the pair at every place of `both`.
    """

    left: Tensor
    right: Tensor
    both: Tensor
    pairs: Tensor
    which: Tensor

    @classmethod
    def of(cls, tracer: Tracer, a: Neurons, b: Neurons) -> Meeting:
        shape = torch.broadcast_shapes(a.shape, b.shape)
        left, right = tracer.nodes.find_all(a.labels.expand(shape), b.labels.expand(shape))
        both = (left >= 0) & (right >= 0) & (left != right)
        return cls(left, right, both, *unique_pairs(left[both], right[both]))

    def result(self, nodes: Tensor, shape: torch.Size) -> Neurons:
        """A node for each pair; where a node meets itself or a constant it stays."""
        labels = torch.maximum(self.left, self.right)
        labels[self.both] = nodes[self.which]
        return Neurons(labels.expand(shape))


def sum_of(tracer: Tracer, node: Node, a: Neurons, b: Neurons) -> Value:
    """A sum has the nodes of the newer layer, with edges of value 1 from those of the older one.

    Two layers that are only summed share their nodes. Where these meet several of the older layer, or
    older and newer ones are mixed, sums are nodes of their own.
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    met = Meeting.of(tracer, a, b)
    older, newer = met.pairs if (met.pairs[0] < met.pairs[1]).all() else met.pairs.flip(0)
    own = newer.unique().numel() < len(newer) or bool((older > newer).any()) or bool(torch.isin(older, newer).any())
    if own:
        return _of_pairs(tracer, node, met, "neuron", shape)
    operands = node.all_input_nodes
    matched = older.unique().numel() == len(older) > 0
    if matched and len(operands) == 2 and all(o in tracer.pristine and len(o.users) == 1 for o in operands):
        tracer.nodes.unify(older, newer)
        tracer.pristine.add(node)
    else:
        edges_between(tracer, older, newer, "residual")
    return met.result(tracer.nodes.find(newer), shape)


def difference_of(tracer: Tracer, node: Node, a: Neurons, b: Neurons) -> Value:
    """Differences are nodes that know which side is subtracted."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    return _of_pairs(tracer, node, Meeting.of(tracer, a, b), "neuron", shape)


def product_of(tracer: Tracer, node: Node, a: Neurons, b: Neurons) -> Value:
    shape = torch.broadcast_shapes(a.shape, b.shape)
    return _of_pairs(tracer, node, Meeting.of(tracer, a, b), "product", shape)


def _of_pairs(tracer: Tracer, node: Node, met: Meeting, kind: str, shape: torch.Size) -> Value:
    """New nodes with edges of value 1 from the two sides, which are told apart."""
    nodes = tracer.nodes.new(node.name, met.pairs.shape[1], kind, met.pairs)
    edges_between(tracer, met.pairs[0], nodes, "left")
    edges_between(tracer, met.pairs[1], nodes, "right")
    return met.result(nodes, shape)
