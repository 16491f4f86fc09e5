"""cat and stack, and the functions that their operands went through."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.conversions import labels_of
from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.rules.reshaping import JOINS, PADS, REARRANGING, as_values
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    nodes_among,
    with_zero_strides,
)

aten = torch.ops.aten

SELECTIONS = functions("slice narrow select index_select")
REORDERINGS = functions("roll flip")


@register_rule(*JOINS)
def concatenation(
    tracer: Tracer, call: Node, tensors: list, *options, **kwargs
) -> Value:
    if any(isinstance(tensor, Unknown) for tensor in tensors):
        return tracer.unknown(call)
    _tell_parts_apart(tracer, call)
    function: Any = call.target
    parts = [labels_of(tracer, value) for value in tensors]
    return as_values(function(parts, *options, **kwargs))


class _Part(NamedTuple):
    """One of several tensors that are concatenated.

    groups: in which its nodes were made. path: the functions applied to them since.
    """

    nodes: Tensor
    groups: set[int]
    path: str


def _tell_parts_apart(tracer: Tracer, call: Node) -> None:
    """Records the functions that parts of one layer went through, if these differ."""
    parts = []
    for source in call.all_input_nodes:
        value = tracer.values.get(source)
        if isinstance(value, Neurons):
            nodes = tracer.nodes.find(nodes_among(value.labels))
            groups = tracer.nodes.group_of(nodes).tolist()
            path = _path(tracer, source)
            parts.append(_Part(nodes, set(groups), path))
    for part in parts:
        # `add_function_nodes` compares nodes of one group alone
        of_layer = [other for other in parts if other.groups & part.groups]
        if any(other.path != part.path for other in of_layer):
            function = AppliedFunction(part.nodes, None, part.path)
            tracer.applied_functions.append(function)


def _path(tracer: Tracer, call: Node) -> str:
    """The functions between the layer that made a value's neurons and the value.

    Functions that only select or rearrange neurons are left out.
    """
    path = []
    while True:
        sources = call.all_input_nodes
        # weights, sums and products have several inputs: there the path ends
        value = tracer.values.get(sources[0]) if len(sources) == 1 else None
        if not isinstance(value, (Neurons, list, tuple)):
            return " ".join([*path, call.name])
        packet = packet_of(call)
        is_item = call.target is operator.getitem
        only_rearranges = is_item or packet in REARRANGING or packet in JOINS
        if not only_rearranges or _changes_positions(tracer, call, value):
            step = (call.target, call.args[1:], call.kwargs)
            path.append(str(step))
        (call,) = sources


def _changes_positions(tracer: Tracer, call: Node, first: Value) -> bool:
    """Whether a function selects, pads or reorders positions of the same neurons."""
    if not isinstance(first, Neurons):
        return False
    dims = _changed_dims(tracer, call, first)
    # stride 0 where labels repeat: positions of the same neurons
    strides = with_zero_strides(first.labels).stride()
    return bool(dims) and all(strides[d] == 0 for d in dims)


def _changed_dims(tracer: Tracer, call: Node, first: Neurons) -> list[int]:
    """The dimensions in which a function selects, pads or reorders entries."""
    packet = packet_of(call)
    options: Any = call.args[1:]
    if packet in SELECTIONS:
        # x[:] selects everything; without a dimension, a slice is of the first one
        is_whole = call.meta["val"].shape == first.shape
        return [] if is_whole else list(options[:1]) or [0]
    if packet is aten.index:
        return [d for d, index in enumerate(options[0]) if index is not None]
    if packet in REORDERINGS:
        # without dims torch rolls the flattened tensor, neurons among it
        return tracer.argument(call, "dims")
    if packet in PADS:
        # two amounts for each of the last dimensions, the last one first
        amounts = enumerate(options[0])
        return [-1 - k // 2 for k, amount in amounts if amount]
    return []
