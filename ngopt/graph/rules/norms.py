"""Norms: diagonal edges to new nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.rules.edges import Segment, add_scale, join_places, segments
from ngopt.graph.rules.entries import as_neurons, is_whole
from ngopt.graph.rules.entrywise import applied
from ngopt.graph.rules.parameters import with_parameter
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.raw import RawBias
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    distinct_rows,
    exchanged,
    folded,
    without_repeats,
)

aten = torch.ops.aten


@register_rule(aten.batch_norm, aten.instance_norm)
def channel_norm(tracer: Tracer, node: Node, x: Value, weight: Value = None, bias: Value = None, *_: Any) -> Value:
    if isinstance(x, Neurons) and len(x.shape) > 2:
        join_places(tracer, x.labels, 1)
    return scale_and_shift(tracer, node, x, [1], weight, bias)


@register_rule(aten.layer_norm)
def layer_norm(
    tracer: Tracer, node: Node, x: Value, shape: Any, weight: Value = None, bias: Value = None, *_: Any
) -> Value:
    return _norm_of_rows(tracer, node, x, len(shape), weight, bias)


@register_rule(aten.rms_norm)
def rms_norm(tracer: Tracer, node: Node, x: Value, shape: Any, weight: Value = None, *_: Any) -> Value:
    return _norm_of_rows(tracer, node, x, len(shape), weight, None)


def _norm_of_rows(tracer: Tracer, node: Node, x: Value, count: int, weight: Value, bias: Value) -> Value:
    """A norm over the last `count` dimensions."""
    if isinstance(x, Elements) and (isinstance(weight, Elements) or isinstance(bias, Elements)):
        x = as_neurons(tracer, node, x)
    rows = tracer.nodes.find_all(x.labels)[0].flatten(-count) if isinstance(x, Neurons) else None
    return scale_and_shift(tracer, node, x, list(range(-count, 0)), weight, bias, rows)


@register_rule(aten.group_norm)
def group_norm(
    tracer: Tracer, node: Node, x: Value, groups: int, weight: Value = None, bias: Value = None, *_: Any
) -> Value:
    """A node for every group, between the channels before and after: channels of different groups are no twins."""
    rows = None
    if isinstance(x, Neurons):
        if len(x.shape) > 2:
            join_places(tracer, x.labels, 1)
        (labels,) = without_repeats([x.labels], keep=[1])
        rows = labels.unflatten(1, (groups, -1)).flatten(2)
    result = scale_and_shift(tracer, node, x, [1], weight, bias, rows, fresh=True)
    before = tracer.vector(x.labels, 1) if isinstance(x, Neurons) else None
    if before is None or not isinstance(result, Neurons) or (before < 0).any():
        return result
    after = tracer.vector(result.labels, 1)
    assert after is not None
    _add_groups(tracer, _label(tracer, weight, node), before.reshape(groups, -1), after.reshape(groups, -1))
    return result


def _add_groups(tracer: Tracer, name: str, before: Tensor, after: Tensor | None = None) -> None:
    """A node for each row of neurons that are normalised together, (groups, n), before the norm and after it.

    Without other neurons after it the edges to the node are enough to tell the rows apart.
    """
    k, n = before.shape
    nodes = tracer.nodes.new(f"{name}.groups", k, "group")
    tracer.add_block(None, before.flatten(), nodes, (k, 1, n), kind="pool")
    if after is not None:
        tracer.add_block(None, nodes, after.flatten(), (k, n, 1), kind="spread")


def scale_and_shift(
    tracer: Tracer,
    node: Node,
    x: Value,
    dims: list[int],
    weight: Value,
    bias: Value,
    rows: Tensor | None = None,
    fresh: bool = False,
) -> Value:
    """New nodes behind diagonal edges, the scale, with the shift as bias (Kofinas et al. 2024, App. C.3).

    rows: labels (..., n), normalised together along the last dimension, which may leave out repeats;
    None where each channel is on its own. Without a scale or shift the nodes stay as they are,
    unless `fresh` ones are asked for.
    """
    if not isinstance(x, Neurons):
        return x if x is not None else tracer.unknown(node)
    if not isinstance(weight, Elements) and not isinstance(bias, Elements) and not fresh:
        tracer.normalised.add(node)
        return x if rows is None or _tie_rows(tracer, node, rows) else Unknown(x.shape)
    labels = tracer.vector(x.labels, dims)
    if labels is None:
        return _shared_scale_and_shift(tracer, node, x, dims, weight, bias, rows)
    name = _label(tracer, weight if isinstance(weight, Elements) else bias, node)
    parts = segments(tracer, tracer.source_nodes(labels, name))
    if parts is None:
        return Unknown(x.shape)
    out = torch.empty_like(labels)
    for part in parts:
        n = len(part.nodes)
        targets = tracer.nodes.new(name, n)
        for k in range(part.slots):
            out[part.start + k * part.slot_step :][: (n - 1) * part.step + 1 : part.step] = targets
        view = _part(weight, part)
        if view is None:
            tracer.add_block(None, part.nodes, targets, (n, 1, 1), kind="residual")
        else:
            add_scale(tracer, view, part.nodes, targets, "gamma")
        shift = _part(bias, part)
        if shift is not None:
            tracer.biases.append(RawBias(shift, targets, shift.shape[1:], "beta"))
    tracer.pristine.add(node)
    shape = [1] * x.labels.dim()
    for d in dims:
        shape[d] = x.shape[d]
    return Neurons(out.reshape(shape).expand(x.shape))


def _shared_scale_and_shift(
    tracer: Tracer, node: Node, x: Neurons, dims: list[int], weight: Value, bias: Value, rows: Tensor | None
) -> Value:
    """A norm that is applied to several rows of neurons, as to the queries of every head.

    New nodes behind edges of value 1; an element of the scale or shift is a node with edges to all that
    share it. As diagonal edges, once for each row, the graph would be symmetric in the neurons of each
    row alone, while the network is only in those of all rows together. Every row that is normalised
    has a node as in a GroupNorm, as a neuron of one row is no twin of that of another.
    """
    (labels,) = tracer.nodes.find_all(x.labels)
    nodes = labels.unique()
    nodes = nodes[nodes >= 0]
    groups = torch.empty(0, 1) if rows is None else _disjoint_rows(tracer, rows)
    if not len(nodes) or groups is None:
        return Unknown(x.shape)
    name = _label(tracer, weight if isinstance(weight, Elements) else bias, node)
    targets = tracer.nodes.new(name, len(nodes))
    tracer.add_block(None, nodes, targets, (len(nodes), 1, 1), kind="residual")
    if groups.shape[1] > 1:
        _add_groups(tracer, name, groups, exchanged(groups, nodes, targets))
    result: Value = Neurons(exchanged(labels, nodes, targets).expand(x.shape))
    shape = [1] * x.labels.dim()
    for d in dims:
        shape[d] = x.shape[d]
    for parameter, kind in ((weight, "gamma"), (bias, "beta")):
        if isinstance(result, Neurons) and isinstance(parameter, Elements):
            parameter = parameter.move(torch.reshape, (parameter, shape), {})
            result = with_parameter(tracer, node, result, parameter, kind)
    return result


def _tie_rows(tracer: Tracer, node: Node, labels: Tensor) -> bool:
    """A node for each of several rows of neurons that are normalised together, (..., n); False if rows overlap."""
    labels = tracer.nodes.find(labels)
    if (labels == labels[..., :1]).all():
        return True  # each row is one neuron, at several positions
    groups = _disjoint_rows(tracer, labels)
    if groups is not None and len(groups) > 1:
        _add_groups(tracer, node.name, groups)
    return groups is not None


@register_rule(aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax)
def softmax(tracer: Tracer, node: Node, x: Value, dim: int, *_: Any) -> Value:
    """Over positions neurons stay as they are; over several rows of neurons, each row has a node."""
    if isinstance(x, Elements):
        tracer.rowwise.add(x.parameter)
        if not is_whole(tracer, x):
            tracer.fixed.add(x.parameter)  # rows of another shape may be parts of its own
        return x
    if not isinstance(x, Neurons):
        return tracer.unknown(node)
    labels = folded(tracer.nodes.find(x.labels)).movedim(dim, -1)
    (labels,) = without_repeats([labels], keep=[labels.dim() - 1])
    if not _tie_rows(tracer, node, labels):
        return tracer.unknown(node)
    applied(tracer, node, labels)
    return x


@register_rule(aten._weight_norm, aten._weight_norm_interface)
def weight_norm(tracer: Tracer, node: Node, v: Value, g: Value, *_: Any) -> Value:
    """w = g v / |v|, with a norm for every row."""
    if not (isinstance(v, Elements) and isinstance(g, Elements)):
        return tracer.unknown(node)
    weight = v.accompanied([g.move(torch.broadcast_to, (g, v.shape), {})])
    norms = node.meta["val"][1:] if isinstance(node.meta["val"], (tuple, list)) else ()
    return (weight, *(Unknown(n.shape, True) for n in norms)) if norms else weight


def _disjoint_rows(tracer: Tracer, labels: Tensor) -> Tensor | None:
    """The nodes of each different row of labels (..., m), (rows, n); None if they overlap or differ in number."""
    rows = distinct_rows(tracer.nodes.find(labels).reshape(-1, labels.shape[-1]))
    found = {tuple(row.unique().tolist()) for row in rows if (row >= 0).any()}
    sets = torch.tensor(sorted(found)) if len({len(members) for members in found}) == 1 else None
    return None if sets is None or (sets < 0).any() or sets.unique().numel() < sets.numel() else sets


def _part(elements: Value, part: Segment) -> View | None:
    """The elements of a norm's parameter that belong to a segment, (n, *slots)."""
    if not isinstance(elements, Elements):
        return None
    numbers = elements.numbers.flatten()
    slots = torch.arange(part.slots) * part.slot_step
    nodes = torch.arange(len(part.nodes)) * part.step
    places = part.start + nodes[:, None] + slots
    return Elements(elements.parameter, numbers[places if part.slots > 1 else places[:, 0]]).view()


def _label(tracer: Tracer, parameter: Value, node: Node) -> str:
    return tracer.owner(parameter.parameter) if isinstance(parameter, Elements) else node.name
