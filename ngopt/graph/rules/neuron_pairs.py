"""Sums, differences and products of two tensors of neurons, entry by entry.

Also view_as_complex and view_as_real, whose nodes stand for pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.registry import aten, register_layer_rule
from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Value,
    has_duplicates,
    same_along,
    unique_pairs,
)


class NeuronPairs(NamedTuple):
    """The pairs of neurons that a function of two tensors combines.

    left, right: labels of the operands, of length 1 where both repeat.
    is_pair: where two different neurons are combined.
    pairs: these neurons, (2, n). which: the pair at every True of `is_pair`.
    shape: of the result.
    """

    left: Tensor
    right: Tensor
    is_pair: Tensor
    pairs: Tensor
    which: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> "NeuronPairs":
        shape = torch.broadcast_shapes(a.shape, b.shape)
        left, right = tracer.nodes.find_all(
            a.labels.expand(shape), b.labels.expand(shape)
        )
        are_neurons = (left > 0) & (right > 0)
        is_same = left == right
        itself = left[are_neurons & is_same].unique()
        if len(itself):  # one operand may be a function of the other
            function = AppliedFunction(itself, f"{call.name} of several", None)
            tracer.applied_functions.append(function)
        is_pair = are_neurons & ~is_same
        pairs, which = unique_pairs(left[is_pair], right[is_pair])
        return cls(left, right, is_pair, pairs, which, shape)

    def result(self, nodes: Tensor, is_pristine: bool = False) -> Neurons:
        """nodes[i] for pair i; a neuron combined with itself or a constant stays."""
        # labels of constants are 0 or -1: the maximum is the neuron, if there is one
        labels = torch.maximum(self.left, self.right)
        labels[self.is_pair] = nodes[self.which]
        return Neurons(labels.expand(self.shape), is_pristine)


def sum_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    """The sum has the nodes of the newer layer, with residual edges from the older one.

    Two layers that are only summed share their nodes. Sums are new nodes if a node of
    the newer layer is in several pairs, or if each operand has older and newer nodes.
    """
    combined = NeuronPairs.of(tracer, call, a, b)
    if has_duplicates(combined.pairs.amax(0)) and _unify_places(tracer, a, b):
        combined = NeuronPairs.of(tracer, call, a, b)
    older, newer = combined.pairs
    # numbers grow with each layer, and the lowest number stands for unified nodes
    if (older >= newer).any():
        older, newer = newer, older
    # a layer plus itself reversed: neither operand is older
    is_mixed = (older > newer).any() or torch.isin(older, newer).any()
    # the value of a dueling network is added to several advantages
    if is_mixed or has_duplicates(newer):
        return combined.result(pair_nodes(tracer, call.name, combined.pairs, "neuron"))
    # outputs of weights that only this sum uses
    users = [len(operand.users) for operand in call.all_input_nodes]
    are_only_summed = users == [1, 1] and a.is_pristine and b.is_pristine
    if are_only_summed and len(older) and not has_duplicates(older):
        tracer.nodes.unify(older, newer)
        return combined.result(tracer.nodes.find(newer), is_pristine=True)
    tracer.edges(None, older, newer, "residual")
    return combined.result(newer)


def _unify_places(tracer: Tracer, a: Neurons, b: Neurons) -> bool:
    """Unifies the neurons of an operand that differ between places where those of the
    other are the same: a class token and patches, to which a table of positions is
    added. Returns whether any were unified."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    labels = [tracer.nodes.find(x.labels.expand(shape)) for x in (a, b)]
    is_same = [[same_along(x, d) for d in range(len(shape))] for x in labels]
    for x, of_x, of_other in zip(labels, is_same, is_same[::-1], strict=True):
        dims = [d for d, same in enumerate(of_other) if not same]
        differs = any(same and not of_x[d] for d, same in enumerate(of_other))
        if dims and differs and tracer.unify_places(x, dims) is not None:
            return True
    return False


def difference_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    """A new node for each pair, whose edges distinguish minuend and subtrahend."""
    return _node_for_each_pair(tracer, call, a, b, "neuron")


def product_of(tracer: Tracer, call: Node, a: Neurons, b: Neurons) -> Neurons:
    return _node_for_each_pair(tracer, call, a, b, "product")


def _node_for_each_pair(
    tracer: Tracer, call: Node, a: Neurons, b: Neurons, kind: str
) -> Neurons:
    combined = NeuronPairs.of(tracer, call, a, b)
    return combined.result(pair_nodes(tracer, call.name, combined.pairs, kind))


def pair_nodes(tracer: Tracer, name: str, pairs: Tensor, kind: str) -> Tensor:
    """New nodes (n,) for pairs (2, n), with "left" and "right" edges of value 1."""
    left, right = pairs
    # made_of: products with several entries of the input may be unified later
    nodes = tracer.nodes.new(name, len(left), kind, pairs)
    tracer.edges(None, left, nodes, "left")
    tracer.edges(None, right, nodes, "right")
    return nodes


def edges_per_use(tracer: Tracer, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges of value 1 from sources[i] to targets[i].

    The first uses of all sources are added together, then the second uses, and so on:
    several heads of queries use one key.
    """
    order = sources.argsort(stable=True)
    _, counts = sources[order].unique_consecutive(return_counts=True)
    # index in `order` at which each source begins
    first = counts.cumsum(0) - counts
    use = torch.empty_like(sources)
    # how many earlier entries are the same source
    use[order] = torch.arange(len(sources)) - first.repeat_interleave(counts)
    for number in use.unique():
        part = use == number
        tracer.edges(None, sources[part], targets[part], kind)


@register_layer_rule(aten.view_as_complex)
def view_as_complex(tracer: Tracer, call: Node, x: Value) -> Value:
    """A node for each pair of real neurons, along the last axis."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    (labels,) = tracer.nodes.find_all(x.labels)
    rows, which = labels.reshape(-1, 2).unique(dim=0, return_inverse=True)
    if (rows <= 0).any():
        return tracer.unknown(call)
    left, right = rows.T
    nodes = tracer.nodes.new(call.name, len(rows), "neuron", rows.T)
    edges_per_use(tracer, left, nodes, "left")
    edges_per_use(tracer, right, nodes, "right")
    labels = nodes[which].reshape(labels.shape[:-1])
    return Neurons(labels.expand(tracer.shape_of(call)))


@register_layer_rule(aten.view_as_real)
def view_as_real(tracer: Tracer, call: Node, x: Value) -> Value:
    """Two nodes for each complex neuron."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    (labels,) = tracer.nodes.find_all(x.labels)
    numbers, which = labels.unique(return_inverse=True)
    if (numbers <= 0).any():
        return tracer.unknown(call)
    parts = []
    for kind in ("left", "right"):
        name = f"{call.name}.{kind}"
        nodes = tracer.nodes.new(name, len(numbers), "neuron", numbers[None])
        tracer.edges(None, numbers, nodes, kind)
        parts.append(nodes)
    labels = torch.stack(parts, -1)[which]
    return Neurons(labels.expand(tracer.shape_of(call)))
