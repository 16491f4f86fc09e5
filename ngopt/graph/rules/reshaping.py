"""Functions without weights that rearrange entries: view, permute, slice, pad, cat.

For cat and stack, also the functions that their operands went through.
"""

import operator
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ngopt.graph.rules.conversions import as_neurons, labels_of
from ngopt.graph.rules.registry import aten, functions, register_layer_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import (
    TRACED,
    Elements,
    Neurons,
    Unknown,
    Value,
    has_any,
    nodes_among,
    with_zero_strides,
)

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
SELECTIONS = functions("slice narrow select index_select")
REORDERINGS = functions("roll flip")


def rearrange(tracer: Tracer, call: Node, first: Value, *args, **kwargs) -> Value:
    """Applies a function that rearranges entries to labels or elements."""
    options = list(args)
    if packet_of(call) in DTYPES:
        source = call.all_input_nodes[0].meta["val"]
        value = call.meta["val"]
        if source.dtype == torch.uint8 and not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)  # tokens, or a mask
        # labels stay integers
        if isinstance(first, Neurons):
            return Neurons(first.labels, is_normalised=first.is_normalised)
        return first
    # labels with stride 0 may have no view of a shape that the network's tensor has
    function: Any = torch.reshape if packet_of(call) in VIEWS else call.target
    if packet_of(call) in SHAPED_LIKE:
        expands = packet_of(call) is aten.expand_as
        function = torch.broadcast_to if expands else torch.reshape
        options = [tracer.shape_of(call)]
    others = tree_leaves((options, kwargs))
    if isinstance(first, Unknown) and isinstance(call.meta["val"], Tensor):
        if not has_any(others, (*TRACED, Tensor)):
            with suppress(RuntimeError, TypeError):  # some do not work without data
                return first.apply(lambda x: function(x, *options, **kwargs))
        return Unknown(tracer.shape_of(call), first.equivariant)
    if has_any([first, *others], Unknown):
        return tracer.unknown(call)
    is_indexed_by_traced = has_any(others, (Neurons, Elements))
    if isinstance(first, Elements) and not is_indexed_by_traced:
        result = _rearranged_elements(
            call, first, lambda x: function(x, *options, **kwargs)
        )
        if result is not None:
            return result
    # elements that are no view, or are indexed by neurons, become nodes
    labels = as_neurons(tracer, first).labels
    if packet_of(call) in PADS:  # with label 0, no neuron
        return as_values(function(labels, options[0]))
    others = [x.labels if isinstance(x, Neurons) else x for x in options]
    return as_values(function(labels, *others, **kwargs))


def as_values(labels: Any) -> Value:
    """`Neurons` of labels, or of each of several; copied labels get stride 0 again."""
    if isinstance(labels, (list, tuple)):
        return [Neurons(with_zero_strides(part)) for part in labels]
    return Neurons(with_zero_strides(labels))


def _rearranged_elements(
    call: Node, elements: Elements, function: Callable[[Tensor], Any]
) -> Value | None:
    """None if the function fails on labels."""
    value = call.meta["val"]
    if isinstance(value, (list, tuple)):  # chunk, split and unbind return several
        parts = range(len(value))
        return [elements.apply(lambda x, k=k: function(x)[k]) for k in parts]
    try:
        return elements.apply(function)
    except (RuntimeError, TypeError, AttributeError):
        return None


@register_layer_rule(aten.im2col)
def im2col(tracer: Tracer, call: Node, x: Value, *options) -> Value:
    """Patches (b, c * k, places) of a map (b, c, h, w)."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    function: Any = call.target
    # im2col takes no integers, and double holds numbers below 2^53; it pads with 0
    labels = function(x.labels.double(), *options).round().long()
    return Neurons(with_zero_strides(labels))


@register_layer_rule(*JOINS)
def concatenation(
    tracer: Tracer, call: Node, tensors: list, *options, **kwargs
) -> Value:
    """Parts of one layer that went through different functions are distinguished."""
    if has_any(tensors, Unknown):
        return tracer.unknown(call)
    parts = []
    paths: dict[int, set[str]] = defaultdict(set)  # by the group of the nodes
    for source in call.all_input_nodes:
        value = tracer.values.get(source)
        if isinstance(value, Neurons):
            nodes = tracer.nodes.find(nodes_among(value.labels))
            groups = set(tracer.nodes.group_of(nodes).tolist())
            path = _path(tracer, source)
            parts.append((groups, AppliedFunction(nodes, None, path)))
            for group in groups:
                paths[group].add(path)
    for groups, function in parts:
        # `add_function_nodes` compares nodes of one group alone
        if any(len(paths[group]) > 1 for group in groups):
            tracer.applied_functions.append(function)
    join: Any = call.target
    labels = [labels_of(tracer, value) for value in tensors]
    return as_values(join(labels, *options, **kwargs))


def _path(tracer: Tracer, call: Node) -> str:
    """The functions between the layer that made a value's neurons and the value,
    without those that only select or rearrange neurons."""
    path = []
    while True:
        sources = call.all_input_nodes
        # weights, sums and products have several inputs: there the path ends
        value = tracer.values.get(sources[0]) if len(sources) == 1 else None
        if not isinstance(value, (Neurons, list, tuple)):
            return " ".join([*path, call.name])
        is_item = call.target is operator.getitem
        only_rearranges = is_item or packet_of(call) in (*REARRANGING, *JOINS)
        changes_positions = False
        if isinstance(value, Neurons):
            dims = _changed_dims(tracer, call, value)
            # stride 0 where labels repeat: positions of the same neurons
            strides = with_zero_strides(value.labels).stride()
            changes_positions = bool(dims) and all(strides[d] == 0 for d in dims)
        if not only_rearranges or changes_positions:
            path.append(str((call.target, call.args[1:], call.kwargs)))
        (call,) = sources


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
        return [-1 - k // 2 for k, amount in enumerate(options[0]) if amount]
    return []
