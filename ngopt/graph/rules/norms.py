"""Norms: edges from one to one to new nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.bare_parameters import with_parameter
from ngopt.graph.rules.convolutions import unify_channel_places
from ngopt.graph.rules.pointwise import note_function
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.rules.reshaping import as_neurons, is_whole
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    distinct_rows,
    has_duplicates,
    nodes_among,
    replaced_labels,
    same_along,
    unique_in_order,
    with_zero_strides,
    without_repeats,
)

aten = torch.ops.aten


@register_rule(aten.batch_norm, aten.instance_norm)
def channel_norm(
    tracer: Tracer,
    call: Node,
    x: Value,
    weight: Value = None,
    bias: Value = None,
    *_: Any,
) -> Value:
    if not isinstance(x, Neurons):
        return _no_neurons(tracer, call, x)
    _join_channels(tracer, x)
    return scale_and_shift(tracer, call, x, [1], weight, bias)


def _no_neurons(tracer: Tracer, call: Node, x: Value) -> Value:
    """The norm of what is no neurons stands for the same."""
    return tracer.unknown(call) if x is None else x


def _join_channels(tracer: Tracer, x: Neurons) -> None:
    """Channels of a map, of which each is one neuron."""
    if len(x.shape) > 2:
        unify_channel_places(tracer, x.labels, 1)


@register_rule(aten.layer_norm)
def layer_norm(
    tracer: Tracer,
    call: Node,
    x: Value,
    shape: Any,
    weight: Value = None,
    bias: Value = None,
    *_: Any,
) -> Value:
    return _norm_of_rows(tracer, call, x, len(shape), weight, bias)


@register_rule(aten.rms_norm)
def rms_norm(
    tracer: Tracer, call: Node, x: Value, shape: Any, weight: Value = None, *_: Any
) -> Value:
    return _norm_of_rows(tracer, call, x, len(shape), weight, None)


def _norm_of_rows(
    tracer: Tracer, call: Node, x: Value, count: int, weight: Value, bias: Value
) -> Value:
    """A norm over the last `count` dimensions."""
    # a scale is edges, which need nodes; without one the result stands for the
    # parameter itself
    if isinstance(x, Elements) and _is_learned(weight, bias):
        x = as_neurons(tracer, call, x)
    if not isinstance(x, Neurons):
        return _no_neurons(tracer, call, x)
    (labels,) = tracer.nodes.find_all(x.labels)
    rows = labels.flatten(-count)
    dims = list(range(-count, 0))
    return scale_and_shift(tracer, call, x, dims, weight, bias, rows)


def _is_learned(weight: Value, bias: Value) -> bool:
    """Whether a norm has a scale or shift."""
    return isinstance(weight, Elements) or isinstance(bias, Elements)


@register_rule(aten.group_norm)
def group_norm(
    tracer: Tracer,
    call: Node,
    x: Value,
    groups: int,
    weight: Value = None,
    bias: Value = None,
    *_: Any,
) -> Value:
    """A node for every group, between the channels before and after.

    Channels of different groups are no twins.
    """
    if not isinstance(x, Neurons):
        return _no_neurons(tracer, call, x)
    _join_channels(tracer, x)
    # channels stay, even of one neuron, as they are cut into groups next
    (labels,) = without_repeats([x.labels], keep=[1])
    rows = labels.unflatten(1, (groups, -1)).flatten(2)
    # fresh also without a scale, as nodes of groups lie between two layers
    result = scale_and_shift(tracer, call, x, [1], weight, bias, rows, fresh=True)
    before = tracer.unify_places(x.labels, 1)
    if before is None or not isinstance(result, Neurons) or (before <= 0).any():
        return result
    after = tracer.unify_places(result.labels, 1)
    assert after is not None
    name = _label(tracer, call, weight)
    _add_groups(tracer, name, before.reshape(groups, -1), after.reshape(groups, -1))
    return result


def _add_groups(
    tracer: Tracer, name: str, before: Tensor, after: Tensor | None = None
) -> None:
    """A node for each row of neurons that are normalised together, (groups, n).

    before, after: the norm. Without other neurons after it the edges to the node are
    enough to tell the rows apart.
    """
    nodes = tracer.nodes.new(f"{name}.groups", len(before), "group")[:, None]
    tracer.edges(None, before, nodes, "pool")
    if after is not None:
        tracer.edges(None, nodes, after, "spread")


def scale_and_shift(
    tracer: Tracer,
    call: Node,
    x: Neurons,
    dims: list[int],
    weight: Value,
    bias: Value,
    rows: Tensor | None = None,
    fresh: bool = False,
) -> Value:
    """New nodes behind edges from one to one, the scale, with the shift as bias.

    As in Kofinas et al. 2024, App. C.3.
    rows: labels (..., n), normalised together along the last dimension, which may leave
    out repeats; None where each channel is on its own. Without a scale or shift the
    nodes stay as they are, unless `fresh` ones are asked for.
    """
    if not _is_learned(weight, bias) and not fresh:
        return _without_parameters(tracer, call, x, rows)
    labels = tracer.unify_places(x.labels, dims)
    if labels is None:
        return _shared_scale_and_shift(tracer, call, x, dims, weight, bias, rows)
    name = _label(tracer, call, weight, bias)
    sources = tracer.source_nodes(labels, name)
    targets = _new_nodes(tracer, name, sources)
    if isinstance(weight, Elements):
        tracer.edges(_flat(weight), sources, targets, "gamma", call)
    else:
        tracer.edges(None, sources, targets, "residual")
    if isinstance(bias, Elements):
        tracer.edges(_flat(bias), None, targets, "beta")
    shape = _shape_along(x, dims)
    # pristine, so that norms which are only summed are one layer, as in residual
    return Neurons(targets.reshape(shape).expand(x.shape), is_pristine=True)


def _without_parameters(
    tracer: Tracer, call: Node, x: Neurons, rows: Tensor | None
) -> Value:
    if rows is not None and not _add_row_nodes(tracer, call, rows):
        return Unknown(x.shape)
    return Neurons(x.labels, is_normalised=True)


def _new_nodes(tracer: Tracer, name: str, sources: Tensor) -> Tensor:
    """A new node for each different source, in groups as those are."""
    targets = torch.empty_like(sources)
    groups = tracer.nodes.group_of(sources)
    # layers that are concatenated stay apart behind a norm, as in densenet
    for group in groups.unique():
        members = groups == group
        # in the order of channels, not of numbers: these differ behind a channel
        # shuffle
        different, which = unique_in_order(sources[members])
        targets[members] = tracer.nodes.new(name, len(different))[which]
    return targets


def _shape_along(x: Neurons, dims: list[int]) -> list[int]:
    """The shape of what differs along some dimensions of a tensor alone."""
    shape = [1] * x.labels.dim()
    for d in dims:
        shape[d] = x.shape[d]
    return shape


def _flat(parameter: Elements) -> Elements:
    return parameter.apply(torch.flatten)


def _shared_scale_and_shift(
    tracer: Tracer,
    call: Node,
    x: Neurons,
    dims: list[int],
    weight: Value,
    bias: Value,
    rows: Tensor | None,
) -> Value:
    """A norm that is applied to several rows of neurons, as to the queries of every
    head.

    New nodes behind edges of value 1; an element of the scale or shift is a node with
    edges to all that share it. As edges from one to one, once for each row, the graph
    would be symmetric in the neurons of each row alone, while the network is only in
    those of all rows together. Every row that is normalised has a node as in a
    GroupNorm, as a neuron of one row is no twin of that of another.
    """
    (labels,) = tracer.nodes.find_all(x.labels)
    nodes = nodes_among(labels)
    # a width of 1 stands for no groups: each channel is normalised on its own
    groups = torch.empty(0, 1) if rows is None else _disjoint_rows(tracer, rows)
    if not len(nodes) or groups is None:
        return Unknown(x.shape)
    name = _label(tracer, call, weight, bias)
    targets = tracer.nodes.new(name, len(nodes))
    tracer.edges(None, nodes, targets, "residual")
    if groups.shape[1] > 1:
        _add_groups(tracer, name, groups, replaced_labels(groups, nodes, targets))
    result = Neurons(replaced_labels(labels, nodes, targets).expand(x.shape))
    shape = _shape_along(x, dims)
    for parameter, kind in ((weight, "gamma"), (bias, "beta")):
        if isinstance(parameter, Elements):
            parameter = parameter.apply(lambda p: p.reshape(shape))
            result = with_parameter(tracer, call, result, parameter, kind)
    return result


def _add_row_nodes(tracer: Tracer, call: Node, labels: Tensor) -> bool:
    """A node for each of several rows of neurons that are normalised together, (...,
    n).

    False, and none, if rows overlap.
    """
    labels = tracer.nodes.find(labels)
    if same_along(labels, -1):
        return True  # each row is one neuron, at several positions
    groups = _disjoint_rows(tracer, labels)
    # a single row has no other to be told from, as the gates in experts
    if groups is not None and len(groups) > 1:
        _add_groups(tracer, call.name, groups)
    return groups is not None


@register_rule(aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax)
def softmax(tracer: Tracer, call: Node, x: Value, dim: int, *_: Any) -> Value:
    """Over positions neurons stay as they are; each of several rows of neurons has a
    node."""
    if isinstance(x, Elements):
        # neurons that such rows meet are pinned, see `with_parameter`
        tracer.row_normalised.add(x.parameter)
        if not is_whole(tracer, x):
            tracer.pinned_parameters.add(
                x.parameter
            )  # rows of another shape may be parts of its own
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


@register_rule(aten._weight_norm, aten._weight_norm_interface)
def weight_norm(tracer: Tracer, call: Node, v: Value, g: Value, *_: Any) -> Value:
    """w = g v / |v|, with a norm for every row."""
    if not (isinstance(v, Elements) and isinstance(g, Elements)):
        return tracer.unknown(call)
    # with stride 0 along a row, by which `Tracer.edges` sees a feature of the targets
    norms = g.apply(lambda g: g.broadcast_to(v.shape))
    weight = v.with_factors([norms])
    values = call.meta["val"]
    if isinstance(values, Tensor):
        return weight
    # the interface gives norms of rows too, which are exchanged with these
    return (weight, *(Unknown(value.shape, True) for value in values[1:]))


def _disjoint_rows(tracer: Tracer, labels: Tensor) -> Tensor | None:
    """The nodes of each different row of labels (..., m), (rows, n).

    None if rows overlap or differ in number.
    """
    rows = tracer.nodes.find(labels).reshape(-1, labels.shape[-1])
    present = [row.unique() for row in distinct_rows(rows) if (row > 0).any()]
    # a set, as distinct_rows may give the first row twice
    found = sorted({tuple(row.tolist()) for row in present})
    # also without any: then rows have no neurons
    if len({len(members) for members in found}) != 1:
        return None
    sets = torch.tensor(found)
    if (sets <= 0).any() or has_duplicates(sets):
        return None
    return sets


def _label(tracer: Tracer, call: Node, *parameters: Value) -> str:
    """The name of the norm, as its first parameter says it."""
    for parameter in parameters:
        if isinstance(parameter, Elements):
            return tracer.name_of(parameter)
    return call.name
