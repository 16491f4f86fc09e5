"""Functions without weights that rearrange entries: view, permute, slice, pad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ngopt.graph.rules.conversions import as_neurons
from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    with_zero_strides,
)

aten = torch.ops.aten

JOINS = functions("cat concat stack hstack vstack")
REARRANGING = functions("""
view reshape _unsafe_view permute transpose t numpy_T mT unsqueeze squeeze expand
expand_as flatten unflatten slice select narrow split split_with_sizes chunk unbind
index index_select roll flip pad constant_pad_nd repeat repeat_interleave tile
contiguous clone alias detach detach_ to _to_copy movedim swapaxes swapdims moveaxis
unfold pixel_shuffle pixel_unshuffle channel_shuffle lift_fresh_copy lift_fresh hsplit
vsplit view_as reshape_as type_as rot90 diagonal tensor_split squeeze_ unsqueeze_ ravel
float double half
""")
VIEWS = functions("view _unsafe_view")
SHAPED_LIKE = functions("view_as reshape_as expand_as")
DTYPES = functions("to _to_copy float double half type_as")
PADS = functions("pad constant_pad_nd")


def rearrange(tracer: Tracer, call: Node, args: tuple, kwargs: dict) -> Value:
    """Applies a function that rearranges entries to labels or elements."""
    first, *options = args
    if packet_of(call) in DTYPES:
        # labels stay integers
        if isinstance(first, Neurons):
            return Neurons(first.labels, is_normalised=first.is_normalised)
        return first
    if packet_of(call) in SHAPED_LIKE:  # any tensor of that shape
        options = [torch.empty(tracer.shape_of(call))]
    leaves = tree_leaves((first, options, kwargs))
    if any(isinstance(leaf, Unknown) for leaf in leaves):
        is_equivariant = isinstance(first, Unknown) and first.equivariant
        if is_equivariant and isinstance(call.meta["val"], Tensor):
            return Unknown(tracer.shape_of(call), equivariant=True)
        return tracer.unknown(call)
    if isinstance(first, Elements):
        result = _rearranged_elements(call, first, options, kwargs)
        if result is not None:
            return result
    # elements that are no view, or are indexed by neurons, become nodes
    labels = as_neurons(tracer, first).labels
    function = _function_of_labels(call)
    if packet_of(call) in PADS:  # with label 0, no neuron
        return as_values(function(labels, options[0]))
    others = [x.labels if isinstance(x, Neurons) else x for x in options]
    return as_values(function(labels, *others, **kwargs))


def _function_of_labels(call: Node) -> Any:
    # labels with stride 0 may have no view of a shape that the network's tensor has
    return torch.reshape if packet_of(call) in VIEWS else call.target


def as_values(labels: Any) -> Value:
    """`Neurons` of labels, or of each of several; copied labels get stride 0 again."""
    if isinstance(labels, (list, tuple)):
        return [Neurons(with_zero_strides(part)) for part in labels]
    return Neurons(with_zero_strides(labels))


def _rearranged_elements(
    call: Node, elements: Elements, options: list, kwargs: dict
) -> Value | None:
    """None if other values are operands, too, or the function fails on labels."""
    for operand in tree_leaves((options, kwargs)):
        if isinstance(operand, (Neurons, Elements)):
            return None
    function = _function_of_labels(call)

    def rearranged(x: Tensor) -> Any:
        return function(x, *options, **kwargs)

    value = call.meta["val"]
    if isinstance(value, (list, tuple)):  # chunk, split and unbind return several
        count = len(value)
        return [elements.apply(lambda x, k=k: rearranged(x)[k]) for k in range(count)]
    try:
        return elements.apply(rearranged)
    except (RuntimeError, TypeError, AttributeError):
        return None


@register_rule(aten.im2col)
def im2col(tracer: Tracer, call: Node, x: Value, *options) -> Value:
    """Patches (b, c * k, places) of a map (b, c, h, w)."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    function: Any = call.target
    # im2col takes no integers, and double holds numbers below 2^53; it pads with 0
    patches = function(x.labels.double(), *options)
    labels = patches.round().long()
    return Neurons(with_zero_strides(labels))
