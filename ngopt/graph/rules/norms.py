"""Norms: diagonal edges to new nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.rules.edges import Segment, segments
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.raw import RawBias
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from ngopt.graph.tracing.tracer import Tracer

aten = torch.ops.aten


@register_rule(aten.batch_norm, aten.instance_norm)
def channel_norm(tracer: Tracer, node: Node, x: Value, weight: Value = None, bias: Value = None, *_: Any) -> Value:
    return scale_and_shift(tracer, node, x, [1], weight, bias)


@register_rule(aten.layer_norm)
def layer_norm(
    tracer: Tracer, node: Node, x: Value, shape: Any, weight: Value = None, bias: Value = None, *_: Any
) -> Value:
    return scale_and_shift(tracer, node, x, list(range(-len(shape), 0)), weight, bias)


@register_rule(aten.rms_norm)
def rms_norm(tracer: Tracer, node: Node, x: Value, shape: Any, weight: Value = None, *_: Any) -> Value:
    return scale_and_shift(tracer, node, x, list(range(-len(shape), 0)), weight, None)


@register_rule(aten.group_norm)
def group_norm(
    tracer: Tracer, node: Node, x: Value, groups: int, weight: Value = None, bias: Value = None, *_: Any
) -> Value:
    """A node for every group, between the channels before and after: channels of different groups are no twins."""
    result = scale_and_shift(tracer, node, x, [1], weight, bias, fresh=True)
    before = tracer.vector(x.labels, 1) if isinstance(x, Neurons) else None
    if before is None or not isinstance(result, Neurons) or (before < 0).any():
        return result
    after = tracer.vector(result.labels, 1)
    assert after is not None
    n = len(before) // groups
    heads = tracer.nodes.new(f"{_label(tracer, weight, node)}.groups", groups, "group")
    tracer.add_block(None, before, heads, (groups, 1, n), kind="pool")
    tracer.add_block(None, heads, after, (groups, n, 1), kind="spread")
    return result


def scale_and_shift(
    tracer: Tracer, node: Node, x: Value, dims: list[int], weight: Value, bias: Value, fresh: bool = False
) -> Value:
    """New nodes behind diagonal edges, the scale, with the shift as bias (Kofinas et al. 2024, App. C.3).

    Without a scale or shift the nodes stay as they are, unless `fresh` ones are asked for.
    """
    if not isinstance(x, Neurons):
        return x if x is not None else tracer.unknown(node)
    if not isinstance(weight, Elements) and not isinstance(bias, Elements) and not fresh:
        return x
    labels = tracer.vector(x.labels, dims)
    name = _label(tracer, weight if isinstance(weight, Elements) else bias, node)
    parts = None if labels is None else segments(tracer, tracer.source_nodes(labels, name))
    if labels is None or parts is None:
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
            slot_shape = view.shape[1:]
            wide = View(view.parameter, (n, 1, 1, *slot_shape), (view.strides[0], 0, 0, *view.strides[1:]), view.offset)
            tracer.add_block(wide, part.nodes, targets, (n, 1, 1), slot_shape, "gamma")
        shift = _part(bias, part)
        if shift is not None:
            tracer.biases.append(RawBias(shift, targets, shift.shape[1:], "beta"))
    tracer.pristine.add(node)
    shape = [1] * x.labels.dim()
    for d in dims:
        shape[d] = x.shape[d]
    return Neurons(out.reshape(shape).expand(x.shape))


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
