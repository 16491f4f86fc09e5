"""Norms: edges from one to one to new nodes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.bare_parameters import with_parameter
from ngopt.graph.rules.conversions import as_neurons, is_whole
from ngopt.graph.rules.convolutions import unify_channel_places
from ngopt.graph.rules.pointwise import note_function
from ngopt.graph.rules.registry import aten, register_layer_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    distinct_rows,
    has_any,
    has_duplicates,
    nodes_among,
    replaced_labels,
    same_along,
    unique_in_order,
    with_zero_strides,
    without_repeats,
)


@dataclass(frozen=True)
class Norm:
    """A norm of neurons x.

    dims: the dimensions along which weight and bias differ.
    weight, bias: the scale and the shift; `Elements`, or anything else without one.
    rows: labels (..., n) that are normalised together along the last dimension; repeats
    may be left out. None if each channel is normalised alone.
    """

    x: Neurons
    dims: list[int]
    weight: Value
    bias: Value
    rows: Tensor | None = None

    @property
    def broadcast_shape(self) -> list[int]:
        """The shape of weight and bias that broadcasts to x."""
        shape = [1] * self.x.labels.dim()
        for d in self.dims:
            shape[d] = self.x.shape[d]
        return shape


def _weight_and_bias(tracer: Tracer, call: Node) -> tuple[Value, Value]:
    """The arguments of a norm that are its weight and its bias, if it has them."""
    return tracer.argument(call, "weight"), tracer.argument(call, "bias")


@register_layer_rule(aten.batch_norm, aten.instance_norm)
def channel_norm(tracer: Tracer, call: Node, x: Value, *_, **__) -> Value:
    weight, bias = _weight_and_bias(tracer, call)
    if isinstance(x, Elements):  # a standardised weight, with a gain for each row
        gains = [p for p in (weight, bias) if isinstance(p, Elements)]
        shape = -1, *[1] * (len(x.shape) - 2)
        return x.with_factors(
            gain.apply(lambda g: g.reshape(shape).expand(x.shape)) for gain in gains
        )
    if not isinstance(x, Neurons):
        return x  # the norm of anything else is represented as its operand
    if len(x.shape) > 2:
        unify_channel_places(tracer, x.labels, 1)
    return scale_and_shift(tracer, call, Norm(x, [1], weight, bias))


@register_layer_rule(aten.layer_norm, aten.native_layer_norm, aten.rms_norm)
def layer_norm(tracer: Tracer, call: Node, x: Value, shape: Any, *_, **__) -> Value:
    """A norm over the last dimensions, of the given shape."""
    weight, bias = _weight_and_bias(tracer, call)
    # the edges of a scale need nodes; without one the result is the parameter itself
    if isinstance(x, Elements) and has_any((weight, bias), Elements):
        x = as_neurons(tracer, x)
    if not isinstance(x, Neurons):
        return x
    (labels,) = tracer.nodes.find_all(x.labels)
    dims = list(range(-len(shape), 0))
    norm = Norm(x, dims, weight, bias, labels.flatten(-len(shape)))
    return scale_and_shift(tracer, call, norm)


@register_layer_rule(aten.group_norm, aten.native_group_norm)
def group_norm(tracer: Tracer, call: Node, x: Value, *_, **__) -> Value:
    """A node for every group, between the channels before and after.

    Channels of different groups cannot be exchanged.
    """
    if not isinstance(x, Neurons):
        return x
    groups = tracer.argument(call, "num_groups") or tracer.argument(call, "group")
    if len(x.shape) > 2:
        unify_channel_places(tracer, x.labels, 1)
    # channels stay, even of one neuron, as they are cut into groups next
    (labels,) = without_repeats([x.labels], keep=[1])
    rows = labels.unflatten(1, (groups, -1)).flatten(2)
    weight, bias = _weight_and_bias(tracer, call)
    norm = Norm(x, [1], weight, bias, rows)
    # new nodes also without a scale, as nodes of groups lie between two layers
    result = scale_and_shift(tracer, call, norm, always_new=True)
    before = tracer.unify_places(x.labels, 1)
    if before is None or not isinstance(result, Neurons) or (before <= 0).any():
        return result
    after = tracer.unify_places(result.labels, 1)
    assert after is not None
    before, after = before.reshape(groups, -1), after.reshape(groups, -1)
    _add_groups(tracer, _name(tracer, call, weight), before, after)
    return result


def _add_groups(
    tracer: Tracer, name: str, before: Tensor, after: Tensor | None = None
) -> None:
    """A node for each row of neurons that are normalised together, (groups, n).

    before, after: the norm. If the neurons after it are the same, edges to the nodes
    alone distinguish the rows.
    """
    nodes = tracer.nodes.new(f"{name}.groups", len(before), "group")[:, None]
    tracer.edges(None, before, nodes, "pool")
    if after is not None:
        tracer.edges(None, nodes, after, "spread")


def scale_and_shift(
    tracer: Tracer, call: Node, norm: Norm, always_new: bool = False
) -> Value:
    """New nodes behind edges from one to one, the scale, with the shift as bias.

    As in Kofinas et al. 2024, App. C.3. Without a scale and a shift the nodes stay,
    unless `always_new`.
    """
    x = norm.x
    is_learned = has_any((norm.weight, norm.bias), Elements)
    if not is_learned and not always_new:
        if norm.rows is not None and not _add_row_nodes(tracer, call, norm.rows):
            return Unknown(x.shape)
        return Neurons(x.labels, is_normalised=True)
    labels = tracer.unify_places(x.labels, norm.dims)
    if labels is None:
        return _shared_scale_and_shift(tracer, call, norm)
    name = _name(tracer, call, norm.weight, norm.bias)
    sources = tracer.source_nodes(labels, name)
    targets = torch.empty_like(sources)
    groups = tracer.nodes.group_of(sources)
    # concatenated layers stay different groups behind a norm
    for group in groups.unique():
        members = groups == group
        # in the order of channels: behind a channel shuffle, numbers have another order
        different, which = unique_in_order(sources[members])
        targets[members] = tracer.nodes.new(name, len(different))[which]
    if isinstance(norm.weight, Elements):
        tracer.edges(norm.weight.apply(torch.flatten), sources, targets, "gamma", call)
    else:
        tracer.edges(None, sources, targets, "residual")
    if isinstance(norm.bias, Elements):
        tracer.edges(norm.bias.apply(torch.flatten), None, targets, "beta")
    labels = targets.reshape(norm.broadcast_shape)
    # pristine, so that norms which are only summed become one layer
    return Neurons(labels.expand(x.shape), is_pristine=True)


def _shared_scale_and_shift(tracer: Tracer, call: Node, norm: Norm) -> Value:
    """A norm of several rows of neurons, such as the queries of every head.

    New nodes behind edges of value 1. An element of the scale or shift is a node with
    edges to all neurons that share it. Edges from one to one for each row would be
    wrong: the graph would be symmetric in the neurons of each row alone, the network
    only in those of all rows together. Every row has a node, as in a GroupNorm.
    """
    x = norm.x
    (labels,) = tracer.nodes.find_all(x.labels)
    nodes = nodes_among(labels)
    # rows of width 1 are no groups: each channel is normalised alone
    groups = torch.empty(0, 1)
    if norm.rows is not None:
        groups = _disjoint_rows(tracer, norm.rows)
    if not len(nodes) or groups is None:
        return Unknown(x.shape)
    name = _name(tracer, call, norm.weight, norm.bias)
    targets = tracer.nodes.new(name, len(nodes))
    tracer.edges(None, nodes, targets, "residual")
    if groups.shape[1] > 1:
        _add_groups(tracer, name, groups, replaced_labels(groups, nodes, targets))
    labels = replaced_labels(labels, nodes, targets)
    result = Neurons(labels.expand(x.shape))
    shape = norm.broadcast_shape
    for parameter, kind in ((norm.weight, "gamma"), (norm.bias, "beta")):
        if isinstance(parameter, Elements):
            parameter = parameter.apply(lambda p: p.reshape(shape))
            result = with_parameter(tracer, call, result, parameter, kind)
    return result


def _add_row_nodes(tracer: Tracer, call: Node, labels: Tensor) -> bool:
    """A node for each of several rows (..., n) that are normalised together. Returns
    False, and adds none, if rows overlap."""
    labels = tracer.nodes.find(labels)
    if same_along(labels, -1):
        return True  # each row is one neuron, at several positions
    groups = _disjoint_rows(tracer, labels)
    # a single row needs no node: there is no other row
    if groups is not None and len(groups) > 1:
        _add_groups(tracer, call.name, groups)
    return groups is not None


@register_layer_rule(aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax)
def softmax(tracer: Tracer, call: Node, x: Value, dim: int, *_) -> Value:
    """Over positions the neurons stay; each of several rows of neurons has a node."""
    if isinstance(x, Elements):
        # `with_parameter` pins neurons that are combined with such rows
        tracer.row_normalised.add(x.parameter)
        if not is_whole(tracer, x):
            # rows of another shape may be parts of the parameter's rows
            tracer.pinned_parameters.add(x.parameter)
        return x
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    labels = with_zero_strides(tracer.nodes.find(x.labels)).movedim(dim, -1)
    (labels,) = without_repeats([labels], keep=[labels.dim() - 1])
    if not _add_row_nodes(tracer, call, labels):
        return tracer.unknown(call)
    note_function(tracer, call, labels)
    # not pristine: two softmaxes that are summed are not one layer
    return Neurons(x.labels)


@register_layer_rule(aten._weight_norm, aten._weight_norm_interface)
def weight_norm(tracer: Tracer, call: Node, v: Value, g: Value, *_) -> Value:
    """w = g v / |v|, with a norm for every row."""
    if not (isinstance(v, Elements) and isinstance(g, Elements)):
        return tracer.unknown(call)
    # stride 0 along a row: `Tracer.edges` makes a feature of the targets of it
    return v.with_factors([g.apply(lambda g: g.broadcast_to(v.shape))])


def _disjoint_rows(tracer: Tracer, labels: Tensor) -> Tensor | None:
    """The nodes (rows, n) of each different row of labels (..., m). None if rows
    overlap or have different numbers of nodes, or without any row."""
    rows = tracer.nodes.find(labels).reshape(-1, labels.shape[-1])
    # a set, as distinct_rows may return the first row twice
    different = set()
    for row in distinct_rows(rows):
        if (row > 0).any():
            different.add(tuple(row.unique().tolist()))
    if len({len(members) for members in different}) != 1:
        return None
    nodes = torch.tensor(sorted(different))
    if (nodes <= 0).any() or has_duplicates(nodes):
        return None
    return nodes


def _name(tracer: Tracer, call: Node, *parameters: Value) -> str:
    """The name of the layer that the first parameter belongs to."""
    for parameter in parameters:
        if isinstance(parameter, Elements):
            return tracer.name_of(parameter)
    return call.name
