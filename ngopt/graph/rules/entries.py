"""Functions without weights: those that move entries, pool or reduce."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ngopt.graph.rules.entrywise import applied
from ngopt.graph.rules.places import join_places
from ngopt.graph.rules.registry import functions, packet_of, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import Applied, Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    SAME_CONSTANT,
    Neurons,
    Unknown,
    Value,
    folded,
    nodes_among,
    same_along,
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
DTYPES = functions("to _to_copy float double half type_as")
SELECTIONS = functions("slice narrow select index_select")
PADS = functions("pad constant_pad_nd")
POSITIONS = (*SELECTIONS, *PADS, *functions("index roll flip"))


def move(tracer: Tracer, call: Node, args: tuple, kwargs: dict) -> Value:
    """Applies a function that moves entries to labels or elements."""
    packet, first = packet_of(call), args[0]
    if packet in DTYPES:
        if not isinstance(first, Neurons):
            return first
        return Neurons(first.labels, is_normalised=first.is_normalised)
    leaves = tree_leaves((args, kwargs))
    if any(isinstance(leaf, Unknown) for leaf in leaves):
        return _moved_unknown(tracer, call, first)
    if isinstance(first, (list, tuple)):
        _tell_parts_apart(tracer, call)
        parts = [_labels_of_part(tracer, call, value) for value in first]
        return _neurons(call.target(parts, *args[1:], **kwargs))  # type: ignore[operator]
    # labels may repeat (stride 0) where the network's own tensor does not: no view has the shape
    function: Any = torch.reshape if packet in VIEWS else call.target
    is_alone = not any(isinstance(leaf, (Neurons, Elements)) for leaf in leaves[1:])
    if isinstance(first, Elements) and is_alone:
        result = _moved_elements(call, first, lambda x: function(x, *args[1:], **kwargs))
        if result is not None:
            return result
    labels = as_neurons(tracer, call, first).labels
    if packet in PADS:  # with 0, which is no neuron
        return _neurons(function(labels, args[1]))
    rest = [a.labels if isinstance(a, Neurons) else a for a in args[1:]]
    return _neurons(function(labels, *rest, **kwargs))


def _neurons(labels: Any) -> Value:
    if isinstance(labels, (list, tuple)):
        return [Neurons(folded(part)) for part in labels]
    return Neurons(folded(labels))


def _moved_unknown(tracer: Tracer, call: Node, first: Value) -> Value:
    is_one = isinstance(call.meta["val"], Tensor)
    if is_one and isinstance(first, Unknown) and first.equivariant:
        return Unknown(tracer.shape_of(call), equivariant=True)
    return tracer.unknown(call)


def _labels_of_part(tracer: Tracer, call: Node, value: Value) -> Tensor:
    """The labels of one of several tensors that are put together."""
    if not isinstance(value, Tensor):
        return as_neurons(tracer, call, value).labels
    is_same = value.numel() and same_along(value.flatten(), 0)
    return torch.full(value.shape, SAME_CONSTANT if is_same else NO_NEURON)


def _tell_parts_apart(tracer: Tracer, call: Node) -> None:
    """Notes down what parts of one layer went through that are put together, if it differs."""
    parts = []
    for part in dict.fromkeys(tree_leaves(call.args[0])):
        value = tracer.values.get(part) if isinstance(part, Node) else None
        if isinstance(value, Neurons):
            nodes = tracer.nodes.find(nodes_among(value.labels))
            groups = set(tracer.nodes.group_of(nodes).tolist())
            parts.append((nodes, groups, _path(tracer, part)))
    for nodes, groups, path in parts:
        if any(other != path and groups & shared for _, shared, other in parts):
            tracer.applied.append(Applied(nodes, None, path))


def _path(tracer: Tracer, call: Node) -> str:
    """The functions that lead to a value from the layer which made its neurons.

    None that only takes some of these is among them.
    """
    functions = []
    while True:
        inputs = [tracer.values.get(a) for a in call.all_input_nodes]
        if len(inputs) != 1 or not isinstance(inputs[0], (Neurons, list, tuple)):
            return " ".join([*functions, call.name])
        only_takes = packet_of(call) in MOVES or call.target is operator.getitem
        if not only_takes or _moves_positions(call, inputs[0]):
            functions.append(str((call.target, call.args[1:], call.kwargs)))
        (call,) = call.all_input_nodes


def _moves_positions(call: Node, first: Value) -> bool:
    """Whether a function takes some positions of neurons, or brings them into another order."""
    if packet_of(call) not in POSITIONS or not isinstance(first, Neurons):
        return False
    dims = _changed_dims(call, first)
    strides = folded(first.labels).stride()
    return bool(dims) and all(strides[d] == 0 for d in dims)


def _changed_dims(call: Node, first: Neurons) -> list[int]:
    """The dimensions in which a function selects or moves entries, as its arguments say."""
    packet = packet_of(call)
    arguments: Any = call.args[1:]
    if packet in SELECTIONS:
        is_cut = tuple(call.meta["val"].shape) != tuple(first.shape)
        return [arguments[0] if arguments else 0] if is_cut else []
    if packet is aten.index:
        return [d for d, index in enumerate(arguments[0]) if index is not None]
    if packet is aten.roll:
        return arguments[1] if len(arguments) > 1 else []
    if packet is aten.flip:
        return arguments[0]
    # a padding, of the last dimensions
    return [-1 - k // 2 for k, n in enumerate(arguments[0]) if n]


def _moved_elements(
    call: Node, elements: Elements, function: Callable[[Tensor], Any]
) -> Value | None:
    value = call.meta["val"]
    if isinstance(value, (list, tuple)):  # chunk, split and unbind give several tensors
        return [elements.apply(lambda x, k=k: function(x)[k]) for k in range(len(value))]
    try:
        return elements.apply(function)
    except (RuntimeError, TypeError, AttributeError):
        return None


def as_neurons(tracer: Tracer, call: Node, value: Value) -> Neurons:
    """A parameter in the place of an activation (a class token) is the value of new nodes.

    Constants are no neurons.
    """
    if isinstance(value, Neurons):
        return value
    if not isinstance(value, Elements):
        return Neurons(torch.full(tuple(value.shape), NO_NEURON))
    numbers, which = value.numbers.unique(return_inverse=True)
    name = tracer.parameters[value.parameter].name
    free = numbers.new_empty(0, len(numbers))
    nodes = tracer.nodes.new(name, len(numbers), made_of=free, mark=Mark.LEARNED)
    tracer.edges(Elements(value.parameter, numbers), None, nodes, "value")
    return Neurons(nodes[which])


def transposed(value: Value) -> Value:
    if isinstance(value, Elements):
        return value.apply(lambda x: x.mT)
    if isinstance(value, Neurons):
        return Neurons(value.labels.mT, is_pristine=value.is_pristine)
    if isinstance(value, Tensor):
        return value.mT
    *lead, rows, columns = value.shape
    return Unknown(torch.Size((*lead, columns, rows)))


POOLS = functions("""
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_bilinear2d upsample_bicubic2d lp_pool2d _adaptive_avg_pool2d upsample_linear1d
upsample_trilinear3d _upsample_bilinear2d_aa
""")


@register_rule(aten.im2col)
def im2col(tracer: Tracer, call: Node, x: Value, *args: Any) -> Value:
    """Patches (b, c * k, places) of a map (b, c, h, w)."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    moved = call.target(x.labels.double(), *args)  # type: ignore[operator]
    return Neurons(folded(moved.round().long()))


@register_rule(*POOLS)
def pool(
    tracer: Tracer,
    call: Node,
    x: Value,
    *_: Any,
    **__: Any,
) -> Value:
    """Pooling and resampling keep the channels."""
    values = call.meta["val"]
    shape = values.shape if isinstance(values, Tensor) else values[0].shape
    if not isinstance(x, Neurons):
        return Unknown(shape)
    channel = 1 if x.labels.dim() > 2 else 0
    join_places(tracer, x.labels, channel)
    channels = tracer.unify_places(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    applied(tracer, call, channels)
    space = [1] * (len(shape) - channel - 1)
    result = Neurons(channels.reshape(-1, *space).expand(shape))
    if isinstance(values, Tensor):
        return result
    return (result, *(Unknown(v.shape) for v in values[1:]))


REDUCTIONS = functions("""
mean sum nansum amax amin aminmax max min median var std var_mean std_mean norm linalg_norm
linalg_vector_norm logsumexp special_logsumexp prod
""")
ROWS = 4096
"""At most so many different sets of neurons in one reduction, each a node."""


def is_whole(tracer: Tracer, x: Value) -> bool:
    """Whether a value is a parameter in its own shape, no dimension of which was cut into parts."""
    return isinstance(x, Elements) and tuple(x.shape) == tracer.parameters[x.parameter].shape


@register_rule(*REDUCTIONS)
def reduction(
    tracer: Tracer,
    call: Node,
    x: Value,
    *args: Any,
    **kwargs: Any,
) -> Value:
    values = call.meta["val"]
    if isinstance(values, Tensor):
        return _reduced(tracer, call, x, values.shape, args, kwargs)
    result = _reduced(tracer, call, x, values[0].shape, args, kwargs)
    # of the places of a maximum nothing is known
    return tuple(result if v.is_floating_point() else Unknown(v.shape) for v in values)


def _reduced(
    tracer: Tracer,
    call: Node,
    x: Value,
    shape: torch.Size,
    args: tuple,
    kwargs: dict,
) -> Value:
    """Over positions of the same neurons these stay; different neurons meet in a new node."""
    if not isinstance(x, Neurons):
        if isinstance(x, Elements) and shape.numel() > 1:
            tracer.rowwise.add(x.parameter)
        return Unknown(shape, equivariant=is_whole(tracer, x))
    dims = _reduced_dims(call, x.shape, shape, args, kwargs)
    if dims is None:
        return Unknown(shape)
    labels = tracer.nodes.find(x.labels)
    kept = [d for d in range(labels.dim()) if d not in dims]
    count = prod(labels.shape[d] for d in kept)
    rows = labels.permute(*kept, *dims).reshape(count, -1)
    if same_along(rows, 1):
        applied(tracer, call, rows[:, 0])
        return Neurons(rows[:, 0].reshape(shape))
    rows = rows.sort(dim=1).values
    sets, which = rows.unique(dim=0, return_inverse=True)
    if len(sets) > ROWS or (sets <= 0).any():
        return Unknown(shape)
    nodes = tracer.nodes.new(call.name, len(sets), "pool", sets.T)
    tracer.edges(None, sets, nodes[:, None], "pool")
    for row in sets:
        members, counts = row.unique(return_counts=True)
        if (counts != counts[0]).any():
            tracer.pin(members)
    return Neurons(nodes[which].reshape(shape))


def _reduced_dims(
    call: Node,
    before: torch.Size,
    after: torch.Size,
    args: tuple,
    kwargs: dict,
) -> list[int] | None:
    """The dimensions that a function reduces, as its signature names them.

    args: those behind the tensor.
    """
    signature = call.target._schema.arguments[1:]  # type: ignore[union-attr]
    names = [argument.name for argument in signature]
    given = dict(zip(names, args, strict=False)) | kwargs
    dims = given.get("dim")
    if dims is None or dims == []:
        return list(range(len(before))) if prod(after) == 1 else None
    dims = [dims] if isinstance(dims, int) else list(dims)
    return sorted(d % len(before) for d in dims)
