"""Functions without weights that move entries, and forms in which other rules take
values."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    Elements,
    Neurons,
    Unknown,
    Value,
    constant_labels,
    nodes_among,
    with_zero_strides,
)

aten = torch.ops.aten

MOVES = functions("""
view reshape _unsafe_view permute transpose t numpy_T mT unsqueeze squeeze expand expand_as flatten
unflatten slice select narrow split split_with_sizes chunk unbind cat concat stack index
index_select roll flip pad constant_pad_nd repeat repeat_interleave tile contiguous clone alias
detach detach_ to _to_copy movedim swapaxes swapdims moveaxis unfold pixel_shuffle pixel_unshuffle
channel_shuffle lift_fresh_copy lift_fresh hsplit vsplit view_as reshape_as type_as hstack vstack
rot90 diagonal tensor_split squeeze_ unsqueeze_ ravel float double half
""")
VIEWS = functions("view _unsafe_view")
SHAPED_LIKE = functions("view_as reshape_as expand_as")
DTYPES = functions("to _to_copy float double half type_as")
SELECTIONS = functions("slice narrow select index_select")
PADS = functions("pad constant_pad_nd")
POSITIONS = (*SELECTIONS, *PADS, *functions("index roll flip"))


def move(tracer: Tracer, call: Node, args: tuple, kwargs: dict) -> Value:
    """Applies a function that moves entries to labels or elements."""
    first, *options = args
    if packet_of(call) in DTYPES:
        # on labels it would give floating-point numbers, or complex ones as in complex
        return _converted(first)
    if packet_of(call) in SHAPED_LIKE:  # whatever has that shape
        options = [torch.empty(tracer.shape_of(call))]
    leaves = tree_leaves((first, options, kwargs))
    if any(isinstance(leaf, Unknown) for leaf in leaves):
        return _moved_unknown(tracer, call, first)
    if isinstance(first, (list, tuple)):
        return _put_together(tracer, call, first, options, kwargs)
    if isinstance(first, Elements):
        # what is no view of a parameter, or is indexed by neurons, becomes nodes below
        result = _moved_elements(call, first, options, kwargs)
        if result is not None:
            return result
    labels = as_neurons(tracer, call, first).labels
    return _moved_labels(call, labels, options, kwargs)


def _converted(x: Value) -> Value:
    """A tensor of another type."""
    if isinstance(x, Neurons):
        return Neurons(x.labels, is_normalised=x.is_normalised)
    return x


def _moved_labels(call: Node, labels: Tensor, options: list, kwargs: dict) -> Value:
    function = _function_on_labels(call)
    if packet_of(call) in PADS:  # with 0, which is no neuron
        return _neurons(function(labels, options[0]))
    others = [x.labels if isinstance(x, Neurons) else x for x in options]
    return _neurons(function(labels, *others, **kwargs))


def _function_on_labels(call: Node) -> Any:
    # labels may repeat (stride 0) where the network's own tensor does not: no view has
    # the shape
    return torch.reshape if packet_of(call) in VIEWS else call.target


def _neurons(labels: Any) -> Value:
    # stride 0 is how others know repeats; functions that copy labels lose it
    if isinstance(labels, (list, tuple)):
        return [Neurons(with_zero_strides(part)) for part in labels]
    return Neurons(with_zero_strides(labels))


def _moved_unknown(tracer: Tracer, call: Node, first: Value) -> Value:
    is_one = isinstance(call.meta["val"], Tensor)
    if is_one and isinstance(first, Unknown) and first.equivariant:
        return Unknown(tracer.shape_of(call), equivariant=True)
    return tracer.unknown(call)


def _put_together(
    tracer: Tracer, call: Node, values: list | tuple, options: list, kwargs: dict
) -> Value:
    """What cat and stack make of several tensors."""
    _tell_parts_apart(tracer, call)
    function: Any = call.target
    parts = [labels_of(tracer, call, value) for value in values]
    return _neurons(function(parts, *options, **kwargs))


def labels_of(tracer: Tracer, call: Node, value: Value) -> Tensor:
    if isinstance(value, Tensor):
        return constant_labels(value)
    return as_neurons(tracer, call, value).labels


class _Part(NamedTuple):
    """One of several tensors that are put together.

    groups: in which its nodes were made. path: what these went through since.
    """

    nodes: Tensor
    groups: set[int]
    path: str


def _tell_parts_apart(tracer: Tracer, call: Node) -> None:
    """Notes down what parts of one layer went through that are put together, if it
    differs."""
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
        of_one_layer = [other for other in parts if other.groups & part.groups]
        if any(other.path != part.path for other in of_one_layer):
            tracer.applied_functions.append(
                AppliedFunction(part.nodes, None, part.path)
            )


def _path(tracer: Tracer, call: Node) -> str:
    """The functions that lead to a value from the layer which made its neurons.

    None that only takes some of these is among them.
    """
    path = []
    while True:
        sources = call.all_input_nodes
        # weights, as sums and products, have several inputs: there the path ends
        value = tracer.values.get(sources[0]) if len(sources) == 1 else None
        if not isinstance(value, (Neurons, list, tuple)):
            return " ".join([*path, call.name])
        only_takes = call.target is operator.getitem or packet_of(call) in MOVES
        if not only_takes or _moves_positions(call, value):
            step = (call.target, call.args[1:], call.kwargs)
            path.append(str(step))
        (call,) = sources


def _moves_positions(call: Node, first: Value) -> bool:
    """Whether a function takes some positions of neurons, or brings them into another
    order."""
    if packet_of(call) not in POSITIONS or not isinstance(first, Neurons):
        return False
    dims = _changed_dims(call, first)
    strides = with_zero_strides(first.labels).stride()
    # `with_zero_strides` gives stride 0 where labels repeat: positions of the same neurons
    return bool(dims) and all(strides[d] == 0 for d in dims)


def _changed_dims(call: Node, first: Neurons) -> list[int]:
    """The dimensions in which a function selects or moves entries, as its arguments
    say."""
    packet = packet_of(call)
    options: Any = call.args[1:]
    if packet in SELECTIONS:
        return _selected_dims(call, first)
    if packet is aten.index:
        return [d for d, index in enumerate(options[0]) if index is not None]
    if packet is aten.roll:
        # without dims torch rolls the flattened tensor, neurons among it
        return options[1] if len(options) > 1 else []
    if packet is aten.flip:
        return options[0]
    return _padded_dims(options[0])


def _selected_dims(call: Node, first: Neurons) -> list[int]:
    # x[:] takes everything
    if call.meta["val"].shape == first.shape:
        return []
    dims: Any = call.args[1:2]
    # a slice that names no dimension is of the first one
    return list(dims) or [0]


def _padded_dims(amounts: list[int]) -> list[int]:
    """amounts: two for each of the last dimensions, the last one first."""
    return [-1 - k // 2 for k, amount in enumerate(amounts) if amount]


def _moved_elements(
    call: Node, elements: Elements, options: list, kwargs: dict
) -> Value | None:
    """None where the result is not of these elements alone, or the function has no
    views."""
    operands = tree_leaves((options, kwargs))
    if any(isinstance(x, (Neurons, Elements)) for x in operands):
        return None
    function = _function_on_labels(call)

    def moved(x: Tensor) -> Any:
        return function(x, *options, **kwargs)

    value = call.meta["val"]
    if isinstance(value, (list, tuple)):  # chunk, split and unbind give several tensors
        count = len(value)
        return [elements.apply(lambda x, k=k: moved(x)[k]) for k in range(count)]
    try:
        return elements.apply(moved)
    except (RuntimeError, TypeError, AttributeError):
        return None


def as_neurons(tracer: Tracer, call: Node, value: Value) -> Neurons:
    """A parameter in the place of an activation (a class token) is the value of new
    nodes.

    Constants are no neurons.
    """
    if isinstance(value, Neurons):
        return value
    if not isinstance(value, Elements):
        labels = torch.full(tuple(value.shape), NO_NEURON)
        return Neurons(labels)
    # an element that is expanded over a batch or over tokens is one node
    numbers, which = value.numbers.unique(return_inverse=True)
    name = tracer.parameters[value.parameter].name
    count = len(numbers)
    # free: as latents, learned entries of several positions may be one neuron, as in
    # perceiver
    free = numbers.new_empty(0, count)
    nodes = tracer.nodes.new(name, count, made_of=free, mark=Mark.LEARNED)
    different = Elements(value.parameter, numbers)
    tracer.edges(different, None, nodes, "value")
    return Neurons(nodes[which])


def transposed(value: Value) -> Value:
    if isinstance(value, Elements):
        return value.apply(lambda x: x.mT)
    if isinstance(value, Neurons):
        # W x is a transposed x^T W^T, and sums of such are one layer too
        return Neurons(value.labels.mT, is_pristine=value.is_pristine)
    if isinstance(value, Tensor):
        return value.mT
    return Unknown(transposed_shape(value.shape))


def transposed_shape(shape: torch.Size) -> torch.Size:
    """The shape of a transposed matrix."""
    *lead, rows, columns = shape
    return torch.Size((*lead, columns, rows))


def is_whole(tracer: Tracer, x: Value) -> bool:
    """Whether a value is a parameter in its own shape, no dimension of which was cut
    into parts."""
    if not isinstance(x, Elements):
        return False
    return tuple(x.shape) == tracer.parameters[x.parameter].shape


@register_rule(aten.im2col)
def im2col(tracer: Tracer, call: Node, x: Value, *options: Any) -> Value:
    """Patches (b, c * k, places) of a map (b, c, h, w)."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    function: Any = call.target
    # im2col takes no integers, and double holds numbers below 2^53; it pads with 0, no
    # neuron
    patches = function(x.labels.double(), *options)
    labels = patches.round().long()
    return Neurons(with_zero_strides(labels))
