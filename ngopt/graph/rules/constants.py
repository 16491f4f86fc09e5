"""Constants: how they are computed, and how neurons differ by them."""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import _side_effectful_functions

from ngopt.graph.rules.registry import functions, register_layer_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Value,
    same_along,
    with_zero_strides,
    without_repeats,
)

KNOWN_CREATIONS = functions(
    "new_zeros new_ones new_full zeros_like ones_like full_like"
)
RANDOM_CREATIONS = functions("new_empty rand_like randn_like empty_like")


def only_computes(function: Any) -> bool:
    """Whether a function may be called, as it has no effect but its result."""
    if not isinstance(function, OpOverload):  # such as one that enters a transform
        return getattr(function, "__module__", "") in ("_operator", "math")
    library, schema = function.namespace, function._schema
    if not schema.returns or function in _side_effectful_functions:
        return False
    # functions of torch that write change their operand alone: here a copy
    return library == "aten" or not (schema.is_mutable or "c10d" in library)


def constant(tracer: Tracer, call: Node, *args, **kwargs) -> Value:
    """A function of constants is computed, if it has no side effects."""
    function: Any = call.target
    if not only_computes(function):
        return tracer.unknown(call)
    value = function(*args, **kwargs)
    expected = call.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(expected, Tensor):
        return value
    # integer inputs are traced as zeros, of which a mask may select another number
    return value if value.shape == expected.shape else tracer.unknown(call)


@register_layer_rule(*KNOWN_CREATIONS, *RANDOM_CREATIONS)
def creation(tracer: Tracer, call: Node, like: Value, *args, **kwargs) -> Value:
    """Random numbers are represented as zeros, the same for all neurons."""
    # the result depends on the shape of the input alone: zeros stay 0
    tracer.input_dependent.discard(call)
    dtype = call.all_input_nodes[0].meta["val"].dtype
    function: Any = call.target
    value = function(torch.zeros(tuple(like.shape), dtype=dtype), *args, **kwargs)
    return value if packet_of(call) in KNOWN_CREATIONS else torch.zeros_like(value)


def tell_apart_by_constant(tracer: Tracer, x: Neurons, constant: Tensor) -> None:
    """Adds a node for each value of a constant that differs between neurons.

    The node has edges to the neurons that are combined with its value. A sinusoidal
    position differs between all neurons, the slope of an ALiBi between heads; a rotary
    embedding is the same for all heads.
    """
    if constant.numel() <= 1:
        return
    whole = with_zero_strides(constant.expand(x.shape))
    if not differs_between_neurons(x.labels, whole):
        return
    labels, values = without_repeats([with_zero_strides(x.labels), whole])
    labels = tracer.nodes.find(labels)
    # inputs are never exchanged
    is_inner = (labels > 0) & ~tracer.nodes.are_marked(labels, Mark.INPUT)
    if is_inner.any():
        _add_value_nodes(tracer, labels[is_inner], values[is_inner])


def differs_between_neurons(labels: Tensor, other: Tensor) -> bool:
    """Whether both labels and another tensor may change along the same dimension.
    Stride 0 means no change."""
    labels = with_zero_strides(labels)
    other = other.expand(labels.shape)
    strides = zip(labels.shape, labels.stride(), other.stride(), strict=True)
    return any(n > 1 and stride and other_stride for n, stride, other_stride in strides)


def _add_value_nodes(tracer: Tracer, labels: Tensor, values: Tensor) -> None:
    """Adds nodes for values[i], which is combined with labels[i], and edges from them.

    Pins the nodes if some are combined with more values than others.
    """
    # stable: the values of each neuron stay in the order of places, to be compared
    labels, order = labels.sort(stable=True)
    nodes, counts = labels.unique_consecutive(return_counts=True)
    if not same_along(counts, 0):
        tracer.pin(nodes)
        return
    # complex128 contains all other types; pairs of reals, as unique refuses complex
    values = values[order].to(torch.complex128)
    numbers = torch.view_as_real(values).reshape(len(nodes), -1)
    rows, owner = numbers.unique(dim=0, return_inverse=True)
    # the same values for all neurons distinguish none
    if len(rows) > 1:
        tracer.edges(None, tracer.constant_nodes(rows)[owner], nodes, "spread")
