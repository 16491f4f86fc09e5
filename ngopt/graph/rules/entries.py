"""Functions without weights: those that move entries, work entry by entry, pool or reduce."""

from __future__ import annotations

import operator
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ngopt.graph.rules.edges import join_places
from ngopt.graph.rules.entrywise import applied
from ngopt.graph.rules.registry import packet_of, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    SAME_CONSTANT,
    Neurons,
    Unknown,
    Value,
    folded,
    nodes_among,
)

aten = torch.ops.aten


MOVES = {
    getattr(aten, name)
    for name in """view reshape _unsafe_view permute transpose t numpy_T mT unsqueeze squeeze expand expand_as flatten
    unflatten slice select narrow split split_with_sizes chunk unbind cat concat stack index
    index_select roll flip pad constant_pad_nd repeat repeat_interleave tile contiguous clone alias
    detach detach_ to _to_copy movedim swapaxes swapdims moveaxis unfold pixel_shuffle pixel_unshuffle
    channel_shuffle lift_fresh_copy lift_fresh hsplit vsplit view_as reshape_as type_as hstack vstack
    rot90 diagonal tensor_split squeeze_ unsqueeze_ ravel float double half""".split()
    if hasattr(aten, name)
}


DTYPES = {getattr(aten, n) for n in ("to", "_to_copy", "float", "double", "half", "type_as") if hasattr(aten, n)}


POSITIONS = {aten.slice, aten.narrow, aten.select, aten.index_select, aten.index, aten.roll, aten.flip, aten.pad,
             aten.constant_pad_nd}  # fmt: skip
PADS = {aten.pad, aten.constant_pad_nd}


def move(tracer: Tracer, node: Node, args: tuple, kwargs: dict) -> Value:
    """Applies a function that moves entries to labels or elements."""
    packet = packet_of(node)
    if packet in DTYPES:
        if node.args[0] in tracer.normalised:
            tracer.normalised.add(node)
        return args[0]
    # labels may repeat (stride 0) where the network's own tensor does not, so that only a copy has the new shape
    function = torch.reshape if packet in (aten.view, aten._unsafe_view) else node.target
    tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, (Neurons, Elements, Unknown))]
    if any(isinstance(a, Unknown) for a in tensors):
        known = isinstance(node.meta["val"], Tensor) and isinstance(args[0], Unknown) and args[0].equivariant
        return Unknown(tracer.shape_of(node), equivariant=True) if known else tracer.unknown(node)
    if len(tensors) == 1 and isinstance(tensors[0], Elements) and not isinstance(args[0], (list, tuple)):
        result = _moved_elements(tensors[0], node, function, args, kwargs)
        if result is not None:
            return result

    shift = 1 if packet in PADS else 0  # so that padding, 0, is no neuron

    def labels(value: Any) -> Any:
        if isinstance(value, Elements):
            value = as_neurons(tracer, node, value)
        if isinstance(value, Neurons):
            return value.labels + shift if shift else value.labels
        return value

    first = args[0]
    if isinstance(first, (list, tuple)):
        parts = [_no_neurons(v) if isinstance(v, Tensor) else labels(v) for v in first]
        moved = node.target(parts, *args[1:], **kwargs)  # type: ignore[operator]
        _tell_parts_apart(tracer, node)
    else:
        if packet in PADS:
            args, kwargs = args[:2], {}
        rest = [a.labels if isinstance(a, Neurons) else a for a in args[1:]]
        moved = function(labels(first), *rest, **kwargs)  # type: ignore[operator]
    if isinstance(moved, (list, tuple)):
        return [Neurons(folded(m - shift if shift else m)) for m in moved]
    result = folded(moved - shift if shift else moved)
    if _moves_positions(node, packet, args):
        tracer.moved.add(node)
    return Neurons(result)


def _tell_parts_apart(tracer: Tracer, node: Node) -> None:
    """Notes down what parts of one layer went through that are put together, if that is not the same for all."""
    values = {a: tracer.values.get(a) for a in tree_leaves(node.args[0]) if isinstance(a, Node)}
    parts = [(value, _path(tracer, part)) for part, value in values.items() if isinstance(value, Neurons)]
    nodes = [tracer.nodes.find(nodes_among(value.labels)) for value, _ in parts]
    groups = [set(tracer.nodes.group_of(n).tolist()) for n in nodes]
    for k, (_, path) in enumerate(parts):
        if any(other != path and groups[k] & groups[i] for i, (_, other) in enumerate(parts)):
            tracer.functions.append((nodes[k], path))


def _path(tracer: Tracer, node: Node) -> str:
    """The functions that lead to a value from the layer which made its neurons; none that only takes some of these."""
    functions = []
    while True:
        inputs = [tracer.values.get(a) for a in node.all_input_nodes]
        if len(inputs) != 1 or not isinstance(inputs[0], (Neurons, list, tuple)):
            return " ".join([*functions, node.name])
        if node in tracer.moved or not (packet_of(node) in MOVES or node.target is operator.getitem):
            functions.append(str((node.target, node.args[1:], node.kwargs)))
        (node,) = node.all_input_nodes


def _no_neurons(constant: Tensor) -> Tensor:
    """Labels of the entries of a constant."""
    same = constant.numel() and bool((constant == constant.flatten()[0]).all())
    return torch.full(constant.shape, SAME_CONSTANT if same else NO_NEURON)


def _moves_positions(node: Node, packet: Any, args: tuple) -> bool:
    """Whether a function takes some positions of neurons, or brings them into another order."""
    first = args[0]
    if packet not in POSITIONS or not isinstance(first, Neurons):
        return False
    strides = folded(first.labels).stride()
    changed = tuple(node.meta["val"].shape) != tuple(first.shape)
    if packet in (aten.slice, aten.narrow, aten.select, aten.index_select):
        dims = [args[1] if len(args) > 1 else 0]
        return changed and strides[dims[0]] == 0
    if packet is aten.index:
        dims = [d for d, index in enumerate(args[1]) if index is not None]
    elif packet is aten.roll:
        dims = args[2] if len(args) > 2 else []
    elif packet is aten.flip:
        dims = args[1]
    else:  # a padding, of the last dimensions
        dims = [-1 - k // 2 for k, n in enumerate(args[1]) if n]
    return bool(dims) and all(strides[d] == 0 for d in dims)


def _moved_elements(elements: Elements, node: Node, function: Any, args: tuple, kwargs: dict) -> Value | None:
    try:
        probe = elements.move(function, args, kwargs)
    except (RuntimeError, TypeError, AttributeError):
        return _split_elements(elements, node, args, kwargs)
    return probe if isinstance(probe.layout, Tensor) else _split_elements(elements, node, args, kwargs)


def _split_elements(elements: Elements, node: Node, args: tuple, kwargs: dict) -> Value | None:
    """chunk, split and unbind give several tensors."""
    count = len(node.meta["val"]) if isinstance(node.meta["val"], (list, tuple)) else 0
    if not count:
        return None
    return [
        elements.move(lambda *a, k=k, **kw: node.target(*a, **kw)[k], args, kwargs)  # type: ignore[operator]
        for k in range(count)
    ]


def as_neurons(tracer: Tracer, node: Node, value: Value) -> Neurons:
    """A parameter used as if it were an activation (a class token) is the value of new nodes; constants are none."""
    if isinstance(value, Neurons):
        return value
    if not isinstance(value, Elements):
        return Neurons(torch.full(tuple(value.shape), -1))
    numbers, inverse = value.numbers.unique(return_inverse=True)
    nodes = tracer.nodes.new(
        tracer.parameters[value.parameter].name, len(numbers), made_of=numbers.new_empty(0, len(numbers))
    )
    tracer.add_bias(Elements(value.parameter, numbers), nodes, "value")
    tracer.learned.append(nodes)
    return Neurons(nodes[inverse])


def transposed(value: Value) -> Value:
    if isinstance(value, Elements):
        return value.move(torch.transpose, (value, -1, -2), {})
    if isinstance(value, Neurons):
        return Neurons(value.labels.mT)
    return (
        value.mT
        if isinstance(value, Tensor)
        else Unknown(torch.Size((*value.shape[:-2], value.shape[-1], value.shape[-2])))
    )


POOLS = [
    getattr(aten, name)
    for name in """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
    max_pool2d_with_indices upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d
    upsample_bicubic2d lp_pool2d _adaptive_avg_pool2d upsample_linear1d upsample_trilinear3d
    _upsample_bilinear2d_aa""".split()
    if hasattr(aten, name)
]


@register_rule(aten.im2col)
def im2col(tracer: Tracer, node: Node, x: Value, *args: Any) -> Value:
    """Patches (b, c * k, places) of a map (b, c, h, w)."""
    if not isinstance(x, Neurons):
        return tracer.unknown(node)
    moved = node.target((x.labels + 1).double(), *args)  # type: ignore[operator]
    return Neurons(folded(moved.round().long() - 1))


@register_rule(*POOLS)
def pool(tracer: Tracer, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Pooling and resampling keep the channels."""
    value = node.meta["val"]
    shape = value.shape if isinstance(value, Tensor) else value[0].shape
    if not isinstance(x, Neurons):
        return Unknown(shape)
    channel = 1 if x.labels.dim() > 2 else 0
    join_places(tracer, x.labels, channel)
    channels = tracer.vector(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    applied(tracer, node, channels)
    result = Neurons(channels.reshape(-1, *([1] * (len(shape) - channel - 1))).expand(shape))
    return result if isinstance(value, Tensor) else (result, *(Unknown(v.shape) for v in value[1:]))


REDUCTIONS = [
    getattr(aten, name)
    for name in """mean sum nansum amax amin aminmax max min median var std var_mean std_mean norm linalg_norm
    linalg_vector_norm logsumexp special_logsumexp prod""".split()
    if hasattr(aten, name)
]


def is_whole(tracer: Tracer, x: Value) -> bool:
    """Whether a value is a parameter in its own shape, none of whose dimensions was cut into parts."""
    return isinstance(x, Elements) and tuple(x.shape) == tracer.parameters[x.parameter].shape


@register_rule(*REDUCTIONS)
def reduction(tracer: Tracer, node: Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Over positions of the same neurons these stay; different neurons meet in a new node."""
    value = node.meta["val"]
    first = value if isinstance(value, Tensor) else value[0]

    def wrap(result: Value) -> Value:
        if isinstance(value, Tensor):
            return result
        return tuple(result if v.is_floating_point() else Unknown(v.shape) for v in value)  # not to places, of a max

    if not isinstance(x, Neurons):
        if isinstance(x, Elements) and first.numel() > 1:
            tracer.rowwise.add(x.parameter)
        return wrap(Unknown(first.shape, equivariant=is_whole(tracer, x)))
    dims = _reduced_dims(node, x.shape, first.shape, args, kwargs)
    if dims is None:
        return wrap(Unknown(first.shape))
    labels = tracer.nodes.find(x.labels)
    kept = [d for d in range(labels.dim()) if d not in dims]
    rows = labels.permute(*kept, *dims).reshape(prod(labels.shape[d] for d in kept), -1)
    if (rows == rows[:, :1]).all():
        applied(tracer, node, rows[:, 0])
        return wrap(Neurons(rows[:, 0].reshape(first.shape)))
    sets, which = rows.sort(dim=1).values.unique(dim=0, return_inverse=True)
    if len(sets) > 4096 or (sets < 0).any():
        return wrap(Unknown(first.shape))
    nodes = tracer.nodes.new(node.name, len(sets), "pool", sets.T)
    for k, row in enumerate(sets):
        members, counts = row.unique(return_counts=True)
        if (counts != counts[0]).any():
            tracer.pin(members)
        tracer.add_block(None, members, nodes[k : k + 1], (1, 1, len(members)), kind="pool")
    return wrap(Neurons(nodes[which].reshape(first.shape)))


def _reduced_dims(node: Node, before: torch.Size, after: torch.Size, args: tuple, kwargs: dict) -> list[int] | None:
    """The dimensions that a function reduces, as its signature names them; args: those behind the tensor."""
    names = [argument.name for argument in node.target._schema.arguments[1:]]  # type: ignore[union-attr]
    dims = {**dict(zip(names, args, strict=False)), **kwargs}.get("dim")
    if dims is None or dims == []:
        return list(range(len(before))) if prod(after) == 1 else None
    dims = [dims] if isinstance(dims, int) else list(dims)
    return sorted(d % len(before) for d in dims)
