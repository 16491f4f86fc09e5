"""One rule for every kind of function with weights: what it adds to the neural graph.

A rule is called with the tracer, the node of the exported network and the function's own arguments,
in which tensors are replaced by `Neurons`, `Elements`, `Unknown` or constants; it returns the same
for the function's result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.elements import Elements
from ngopt.graph.tracer import (
    Neurons,
    Tracer,
    Unknown,
    Value,
    distinct_rows,
    folded,
    unique_pairs,
    without_repeats,
)

aten = torch.ops.aten
Rule = Callable[..., Any]

RULES: dict[Any, Rule] = {}


def register_rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Registers a rule for functions of `torch.ops` (all overloads or one)."""

    def register(rule: Rule) -> Rule:
        for function in functions:
            RULES[function] = rule
        return rule

    return register


class Segment(NamedTuple):
    """Columns start ... start + n * slots of a weight: the edges from n nodes.

    nodes: (n,). step, slot_step: how many columns further the next node and the next slot are.
    """

    nodes: Tensor
    start: int
    step: int
    slots: int
    slot_step: int


def segments(tracer: Tracer, labels: Tensor) -> list[Segment] | None:
    """Splits the nodes behind a weight's columns into groups, each node once in each segment.

    labels: (columns,). A flattened feature map has a node several times; those columns are slots.
    None where they are in no regular order.
    """
    groups = tracer.nodes.group_of(labels)
    found: list[Segment] = []
    for group in groups.unique().tolist():
        columns = (groups == group).nonzero().flatten()
        for run in _even_runs(columns):
            step = int(run[1] - run[0]) if len(run) > 1 else 1
            part = labels[run]
            n = part.unique().numel()
            slots = len(part) // n
            if n * slots != len(part):
                return None
            if torch.equal(part, part[::slots].repeat_interleave(slots)):
                found.append(Segment(part[::slots], int(run[0]), slots * step, slots, step))
            elif torch.equal(part, part[:n].repeat(slots)):
                found.append(Segment(part[:n], int(run[0]), step, slots, n * step))
            else:
                return None
    return found


def _even_runs(columns: Tensor) -> list[Tensor]:
    """Stretches of ascending numbers with the same step between neighbours."""
    runs = []
    while len(columns):
        steps = columns[1:] - columns[:-1]
        changes = (steps != steps[:1]).nonzero().flatten()
        length = int(changes[0]) + 1 if len(changes) else len(columns)
        runs.append(columns[:length])
        columns = columns[length:]
    return runs


# ---------------------------------------------------------------------------------------------------
# Layers with weights


@register_rule(aten.linear)
def linear(tracer: Tracer, node: Node, x: Value, weight: Value, bias: Value = None) -> Value:
    """y = x W^T + b; W (n_out, n_in)."""
    if not isinstance(weight, Elements):
        return product_sum(tracer, node, x, transposed(weight), bias)
    if not isinstance(x, Neurons):
        x = as_neurons(tracer, node, x)
    name = tracer.owner(weight.parameter)
    sources = tracer.vector(x.labels, -1)
    if sources is not None and x.shape[-1] > 1 and sources.unique().numel() == 1 and _varies(x.labels):
        sources = None
    if sources is None:
        return position_mixing(tracer, node, x, weight, bias)
    targets = tracer.nodes.new(name, weight.shape[0])
    connect(tracer, weight, tracer.source_nodes(sources, name), targets)
    add_bias(tracer, bias, targets)
    tracer.pristine.add(node)
    return Neurons(targets.expand(tracer.shape_of(node)))


def _varies(labels: Tensor) -> bool:
    return distinct_rows(labels.reshape(-1, labels.shape[-1])).shape[0] > 1


def connect(tracer: Tracer, weight: Elements, sources: Tensor, targets: Tensor) -> None:
    """Dense edges (n_target, columns); columns of the same source are slots."""
    view = weight.view()
    parts = segments(tracer, sources)
    if view is None or parts is None:
        return
    row, column = view.strides
    for part in parts:
        n = len(part.nodes)
        slot_shape = (part.slots,) if part.slots > 1 else ()
        shape = (1, len(targets), n)
        strides = (0, row, column * part.step, *((column * part.slot_step,) if slot_shape else ()))
        piece = View(weight.parameter, (*shape, *slot_shape), strides, view.offset + part.start * column)
        tracer.add_block(piece, part.nodes, targets, shape, slot_shape)


def add_bias(tracer: Tracer, bias: Value, targets: Tensor, kind: str = "bias") -> None:
    if isinstance(bias, Elements):
        tracer.add_bias(bias, targets, kind)


def position_mixing(tracer: Tracer, node: Node, x: Value, weight: Elements, bias: Value) -> Value:
    """A weight that mixes positions of each neuron: a component between positions, labels stay."""
    name = tracer.owner(weight.parameter)
    sources = tracer.nodes.new(f"{name}.positions", weight.shape[1], "position")
    targets = tracer.nodes.new(name, weight.shape[0], "position")
    connect(tracer, weight, sources, targets)
    add_bias(tracer, bias, targets)
    labels = x.labels
    if not (labels == labels[..., :1]).all():
        return Unknown(tracer.shape_of(node))
    return Neurons(labels[..., :1].expand(tracer.shape_of(node)))


@register_rule(aten.addmm)
def addmm(tracer: Tracer, node: Node, bias: Value, x: Value, weight: Value, **_: Any) -> Value:
    return linear(tracer, node, x, transposed(weight), bias)


@register_rule(aten.matmul, aten.mm, aten.bmm)
def matmul(tracer: Tracer, node: Node, x: Value, other: Value) -> Value:
    """x @ other, either of which may be a parameter; two activations multiply (attention)."""
    if isinstance(other, Elements) and len(other.shape) == 2 and isinstance(x, Neurons):
        return linear(tracer, node, x, transposed(other))
    if isinstance(x, Elements) and len(x.shape) == 2 and isinstance(other, Neurons):
        flipped = linear(tracer, node, Neurons(other.labels.mT), x) if other.labels.dim() == 2 else None
        if isinstance(flipped, Neurons):
            return Neurons(flipped.labels[0].unsqueeze(-1).expand(tracer.shape_of(node)))
    if isinstance(other, Elements) and isinstance(x, Neurons):
        return batched_weight(tracer, node, x, other)
    return product_sum(tracer, node, x, other)


def batched_weight(tracer: Tracer, node: Node, x: Neurons, weight: Elements) -> Value:
    """(..., t, n_in) @ (..., n_in, n_out) with its own weight for each index of the leading dimensions."""
    shape = tracer.shape_of(node)
    lead = weight.shape[:-2]
    labels = x.labels.expand(*torch.broadcast_shapes(x.shape[:-2], lead), *x.shape[-2:])
    out = torch.full(shape, -1)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in lead)).reshape(-1, len(lead)).tolist():
        index = (..., *place, slice(None), slice(None))
        sources = tracer.vector(labels[index], -1)
        if sources is None:
            return Unknown(shape)
        name = tracer.owner(weight.parameter)
        targets = tracer.nodes.new(name, weight.shape[-1])
        piece = transposed(weight.move(lambda w, place=tuple(place): w[place], (weight,), {}))
        connect(tracer, piece, tracer.source_nodes(sources, name), targets)
        out[index] = targets.expand(out[index].shape)
    return Neurons(out)


@register_rule(aten.bilinear)
def bilinear(tracer: Tracer, node: Node, a: Value, b: Value, weight: Value, bias: Value = None) -> Value:
    """y_k = a^T W_k b: dense edges from the products of all pairs of the inputs."""
    if not (isinstance(a, Neurons) and isinstance(b, Neurons) and isinstance(weight, Elements)):
        return tracer.unknown(node)
    name = tracer.owner(weight.parameter)
    left, right = tracer.vector(a.labels, -1), tracer.vector(b.labels, -1)
    if left is None or right is None:
        return tracer.unknown(node)
    n, m = len(left), len(right)
    left, right = tracer.source_nodes(left, name), tracer.source_nodes(right, name)
    pairs = tracer.nodes.new(f"{name}.products", n * m, "product")
    tracer.add_block(None, left, pairs, (n, m, 1), kind="left")
    tracer.add_block(None, right, pairs.reshape(n, m).T.flatten(), (m, n, 1), kind="right")
    targets = tracer.nodes.new(name, weight.shape[0])
    connect(tracer, weight.move(torch.flatten, (weight, 1), {}), pairs, targets)
    add_bias(tracer, bias, targets)
    return Neurons(targets.expand(tracer.shape_of(node)))


@register_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(
    tracer: Tracer, node: Node, x: Value, weight: Value, bias: Value = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    """Channels are neurons, kernel positions slots (Kofinas et al. 2024, section 2.2); W (n_out, n_in / g, *k)."""
    return _convolution(tracer, node, x, weight, bias, groups, swap=False)


@register_rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def transposed_convolution(
    tracer: Tracer, node: Node, x: Value, weight: Value, bias: Value = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    """As a convolution, with W (n_in, n_out / g, *k)."""
    return _convolution(tracer, node, x, weight, bias, groups, swap=True)


def _convolution(tracer: Tracer, node: Node, x: Value, weight: Value, bias: Value, groups: int, swap: bool) -> Value:
    shape = tracer.shape_of(node)
    channel = -(len(weight.shape) - 1) if hasattr(weight, "shape") else 1
    if not isinstance(weight, Elements) or weight.view() is None:
        return Unknown(shape)
    if not isinstance(x, Neurons):
        x = as_neurons(tracer, node, x)
    view, name = weight.view(), tracer.owner(weight.parameter)
    assert view is not None
    sources = tracer.vector(x.labels, channel)
    if sources is None:
        return Unknown(shape)
    sources = tracer.source_nodes(sources, name)
    rows, columns = (view.strides[1], view.strides[0]) if swap else view.strides[:2]
    n_target = view.shape[1] if swap else view.shape[0] // groups
    n_source = view.shape[0] // groups if swap else view.shape[1]
    step = n_source * columns if swap else n_target * rows
    targets = tracer.nodes.new(name, groups * n_target)
    kernel = view.shape[2:]
    piece = View(
        weight.parameter,
        (groups, n_target, n_source, *kernel),
        (step if groups > 1 else 0, rows, columns, *view.strides[2:]),
        view.offset,
    )
    if groups > 1 and n_source == 1:
        for part in segments(tracer, sources) or []:  # a depthwise convolution
            n = len(part.nodes)
            shifted = View(
                weight.parameter,
                (n, *piece.shape[1:]),
                (piece.strides[0] * part.step, *piece.strides[1:]),
                piece.offset + part.start * piece.strides[0],
            )
            chosen = targets.reshape(groups, n_target)[part.start :: part.step][:n].flatten()
            tracer.add_block(shifted, part.nodes, chosen, shifted.shape[:3], kernel)
    elif groups == 1:
        for part in segments(tracer, sources) or []:
            shape3 = (1, n_target, len(part.nodes))
            shifted = View(
                weight.parameter,
                (*shape3, *kernel),
                (0, rows, columns * part.step, *view.strides[2:]),
                view.offset + part.start * columns,
            )
            tracer.add_block(shifted, part.nodes, targets, shape3, kernel)
    elif sources.unique().numel() == len(sources):
        tracer.add_block(piece, sources, targets, piece.shape[:3], kernel)
    add_bias(tracer, bias, targets)
    tracer.pristine.add(node)
    return Neurons(targets.reshape(-1, *([1] * len(kernel))).expand(shape))


@register_rule(aten.embedding)
def embedding(tracer: Tracer, node: Node, weight: Value, index: Value, *_: Any) -> Value:
    """Rows of a table are input nodes; W (tokens, n)."""
    if not isinstance(weight, Elements):
        return elementwise(tracer, node, (weight,), {})
    name = tracer.owner(weight.parameter)
    tokens = tracer.nodes.new(f"{name}.tokens", weight.shape[0], "token")
    targets = tracer.nodes.new(name, weight.shape[1])
    connect(tracer, transposed(weight), tokens, targets)
    tracer.pristine.add(node)
    return Neurons(targets.expand(tracer.shape_of(node)))


@register_rule(aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
def recurrent(tracer: Tracer, node: Node, x: Value, states: Any, weights: Any, *options: Any) -> Value:
    """Gates are slots: W_ih (gates * n, n_in), W_hh (gates * n, n), and two biases, layer by layer and way by way."""
    unknown = tracer.unknown(node)
    if not isinstance(x, Neurons) or not isinstance(weights, (list, tuple)):
        return unknown
    has_biases, layers, _, _, both_ways = options[:5]
    names = [w for w in weights if isinstance(w, Elements)]
    per_way = len(names) // (layers * (2 if both_ways else 1))
    current = tracer.vector(x.labels, -1)
    if current is None:
        return unknown
    for layer in range(layers):
        ends = []
        for way in range(2 if both_ways else 1):
            first = (layer * (2 if both_ways else 1) + way) * per_way
            ends.append(_recurrent_layer(tracer, current, names[first : first + per_way], has_biases))
        current = torch.cat(ends)
    outputs = list(node.meta["val"])
    result = [Neurons(current.expand(outputs[0].shape))]
    return (*result, *(Unknown(v.shape) for v in outputs[1:]))


def _recurrent_layer(tracer: Tracer, sources: Tensor, weights: Sequence[Elements], has_biases: bool) -> Tensor:
    w_ih, w_hh = weights[:2]
    biases, projection = (weights[2:4], weights[4:]) if has_biases else ((), weights[2:])
    hidden = w_hh.shape[1]
    name = tracer.parameters[w_ih.parameter].name.replace("weight_ih_", "")
    cells = projection[0].shape[1] if projection else hidden
    gates = w_ih.shape[0] // cells
    targets = tracer.nodes.new(name, cells)
    fed_back = tracer.nodes.new(f"{name}.projection", hidden) if projection else targets
    for weight, nodes in ((w_ih, tracer.source_nodes(sources, name)), (w_hh, fed_back)):
        view = weight.view()
        if view is None:
            continue
        row, column = view.strides
        shape = (1, cells, len(nodes))
        piece = View(weight.parameter, (*shape, gates), (0, row, column, row * cells), view.offset)
        tracer.add_block(piece, nodes, targets, shape, (gates,))
    for bias in biases:
        tracer.add_bias(bias.move(lambda b: b.view(gates, cells).T, (bias,), {}), targets)
    if projection:
        connect(tracer, projection[0], targets, fed_back)
    return fed_back


# ---------------------------------------------------------------------------------------------------
# Norms and other diagonal layers


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
            slot_shape = view.shape[1:]
            wide = View(view.parameter, (n, 1, 1, *slot_shape), (view.strides[0], 0, 0, *view.strides[1:]), view.offset)
            tracer.add_block(wide, part.nodes, targets, (n, 1, 1), slot_shape)
        shift = _part(bias, part)
        if shift is not None:
            from ngopt.graph.tracer import RawBias

            tracer.biases.append(RawBias(shift, targets, shift.shape[1:], "shift"))
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


@register_rule(aten.prelu)
def prelu(tracer: Tracer, node: Node, x: Value, weight: Value) -> Value:
    """A parametric activation: its slope is a feature of the neurons it is applied to."""
    if isinstance(x, Neurons) and isinstance(weight, Elements):
        shape = [1] * x.labels.dim()
        if x.labels.dim() > 1:
            shape[1] = weight.shape[0]
        return with_parameter(tracer, node, x, weight.move(torch.reshape, (weight, shape), {}), "slope")
    return elementwise(tracer, node, (x, weight), {})


# ---------------------------------------------------------------------------------------------------
# Activations with each other


@register_rule(aten.scaled_dot_product_attention)
def attention(
    tracer: Tracer, node: Node, q: Value, k: Value, v: Value, mask: Value = None, *_: Any, **__: Any
) -> Value:
    """softmax(q k^T + mask) v with heads kept apart; grouped-query heads are repeated."""
    if not all(isinstance(x, Neurons) for x in (q, k, v)):
        return tracer.unknown(node)
    ratio = q.shape[-3] // k.shape[-3] if len(q.shape) > 2 and q.shape[-3] != k.shape[-3] else 1
    if ratio > 1:
        k, v = (Neurons(x.labels.repeat_interleave(ratio, -3)) for x in (k, v))
    scores_shape = torch.Size((*q.shape[:-1], k.shape[-2]))
    scores = _product_sum(tracer, node.name, q, Neurons(k.labels.mT), scores_shape)
    if isinstance(mask, Elements) and isinstance(scores, Neurons):
        scores = with_parameter(tracer, node, scores, mask, "bias")
    elif isinstance(mask, Neurons) and isinstance(scores, Neurons):
        scores = sum_of(tracer, node, scores, mask)
    return _product_sum(tracer, f"{node.name}.values", scores, v, tracer.shape_of(node))


def product_sum(tracer: Tracer, node: Node, a: Value, b: Value, bias: Value = None) -> Value:
    return _product_sum(tracer, node.name, a, b, tracer.shape_of(node))


def _product_sum(tracer: Tracer, name: str, a: Value, b: Value, shape: torch.Size) -> Value:
    """a @ b of two activations, (..., t, n) and (..., n, m).

    Where the summed index runs over neurons (q k^T), each pair of them is a product, and all
    products that are summed meet in one node, a head. Where it runs over positions (attention times
    values), the neurons of b are weighted by those of a, each pair again a product.
    """
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = tracer.nodes.find(a.labels.expand(*lead, *a.shape[-2:]))
        right = tracer.nodes.find(b.labels.expand(*lead, *b.shape[-2:]))
        t, n = left.shape[-2:]
        m = right.shape[-1]
        left, right = left.reshape(-1, t, n), right.reshape(-1, n, m)
        if (right == right[:, :, :1]).all() and (left == left[:, :1]).all():
            return _scores(tracer, name, left[:, 0], right[:, :, 0], shape)
        if (right == right[:, :1]).all() and (left == left[:, :1, :1]).all():
            return _weighted(tracer, name, left[:, 0, 0], right[:, 0], shape)
    if isinstance(a, (Tensor, Unknown)) and isinstance(b, Neurons):
        if (b.labels == b.labels[..., :1, :]).all():  # a constant mixes positions
            return Neurons(b.labels[..., :1, :].expand(*b.labels.shape[:-2], *shape[-2:]).expand(shape))
    if isinstance(b, (Tensor, Unknown)) and isinstance(a, Neurons) and (a.labels == a.labels[..., :1]).all():
        return Neurons(a.labels[..., :1].expand(shape))
    return Unknown(shape)


def _scores(tracer: Tracer, name: str, left: Tensor, right: Tensor, shape: torch.Size) -> Value:
    """left, right: (heads that repeat, n) -> one node a head, behind n products."""
    n = left.shape[1]
    if (left < 0).any() or (right < 0).any():
        return Unknown(shape)
    heads, which = torch.cat([left, right], dim=1).unique(dim=0, return_inverse=True)
    products = tracer.nodes.new(f"{name}.products", len(heads) * n, "product")
    diagonal(tracer, heads[:, :n].flatten(), products, "left")
    diagonal(tracer, heads[:, n:].flatten(), products, "right")
    nodes = tracer.nodes.new(f"{name}.heads", len(heads), "head")
    tracer.add_block(None, products, nodes, (len(heads), 1, n), kind="pool")
    return Neurons(nodes[which].reshape(*shape[:-2], 1, 1).expand(shape))


def _weighted(tracer: Tracer, name: str, heads: Tensor, values: Tensor, shape: torch.Size) -> Value:
    """heads: (r,), values: (r, m) -> the products of each head with its values."""
    if (heads < 0).any() or (values < 0).any():
        return Unknown(shape)
    rows, which = torch.cat([heads[:, None], values], dim=1).unique(dim=0, return_inverse=True)
    m = values.shape[1]
    products = tracer.nodes.new(name, len(rows) * m, "product")
    fan_out(tracer, rows[:, 0], products, m, "left")
    diagonal(tracer, rows[:, 1:].flatten(), products, "right")
    labels = products.reshape(len(rows), m)[which]
    return Neurons(labels.reshape(*shape[:-2], 1, m).expand(shape))


def diagonal(tracer: Tracer, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges of value 1 from sources[i] to targets[i]; a source that occurs again goes to a block of its own."""
    for part in _without_repeats(sources):
        tracer.add_block(None, sources[part], targets[part], (len(part), 1, 1), kind=kind)


def fan_out(tracer: Tracer, sources: Tensor, targets: Tensor, n: int, kind: str) -> None:
    """Edges of value 1 from sources[i] to n targets each."""
    targets = targets.reshape(-1, n)
    for part in _without_repeats(sources):
        tracer.add_block(None, sources[part], targets[part].flatten(), (len(part), n, 1), kind=kind)


def _without_repeats(nodes: Tensor) -> list[Tensor]:
    """Positions, split so that no node comes twice in a part."""
    parts, rest = [], torch.arange(len(nodes))
    while len(rest):
        _, inverse = nodes[rest].unique(return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(rest)).scatter_reduce(
            0, inverse, torch.arange(len(rest)), "amin"
        )
        taken = first.sort().values
        parts.append(rest[taken])
        keep = torch.ones(len(rest), dtype=torch.bool)
        keep[taken] = False
        rest = rest[keep]
    return parts


@register_rule(aten.add, aten.add_, aten.sub, aten.sub_)
def addition(tracer: Tracer, node: Node, a: Value, b: Value, **_: Any) -> Value:
    """A residual connection, a positional parameter, or a shift by a constant."""
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        return sum_of(tracer, node, a, b)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Neurons) and isinstance(other, Elements):
            return with_parameter(tracer, node, x, other, "bias")
    return elementwise(tracer, node, (a, b), {})


def sum_of(tracer: Tracer, node: Node, a: Neurons, b: Neurons) -> Value:
    """Two layers that are only summed share their nodes; else edges of value 1 from the older to the newer."""
    shape = tracer.shape_of(node) if isinstance(node.meta.get("val"), Tensor) else a.shape
    left, right = find_all(tracer, a.labels.expand(shape), b.labels.expand(shape))
    both = (left >= 0) & (right >= 0) & (left != right)
    pairs, _ = unique_pairs(left[both], right[both])
    result = torch.maximum(left, right).expand(shape)
    if not pairs.numel():
        return Neurons(result)
    matched = all(side.unique().numel() == pairs.shape[1] for side in pairs)
    operands = [arg for arg in node.args[:2] if isinstance(arg, Node)]
    if matched and len(operands) == 2 and all(o in tracer.pristine and len(o.users) == 1 for o in operands):
        tracer.nodes.unify(pairs[0], pairs[1])
        tracer.pristine.add(node)
        return Neurons(find_all(tracer, result)[0].expand(shape))
    low, high = torch.minimum(*pairs), torch.maximum(*pairs)
    edges_between(tracer, low, high, "residual")
    return Neurons(result)


def edges_between(tracer: Tracer, sources: Tensor, targets: Tensor, kind: str) -> None:
    """Edges of value 1 for pairs of nodes, in as few blocks as their pattern allows."""
    one, many = sources.unique().numel(), targets.unique().numel()
    if one == 1:
        tracer.add_block(None, sources[:1], targets, (1, len(targets), 1), kind=kind)
    elif many == 1:
        tracer.add_block(None, sources, targets[:1], (1, 1, len(sources)), kind=kind)
    else:
        for part in _without_repeats(sources):
            for piece in _without_repeats(targets[part]):
                chosen = part[piece]
                tracer.add_block(None, sources[chosen], targets[chosen], (len(chosen), 1, 1), kind=kind)


@register_rule(aten.mul, aten.mul_, aten.div, aten.div_)
def multiplication(tracer: Tracer, node: Node, a: Value, b: Value, **_: Any) -> Value:
    """A gate (a product of neurons), a scale (diagonal edges), or a constant factor."""
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        return product_of(tracer, node, a, b)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Neurons) and isinstance(other, Elements):
            return with_parameter(tracer, node, x, other, "scale")
    return elementwise(tracer, node, (a, b), {})


def product_of(tracer: Tracer, node: Node, a: Neurons, b: Neurons) -> Value:
    shape = tracer.shape_of(node)
    left, right = find_all(tracer, a.labels.expand(shape), b.labels.expand(shape))
    if torch.equal(left, right):
        return Neurons(left.expand(shape))
    both = (left >= 0) & (right >= 0) & (left != right)
    pairs, which = unique_pairs(left[both], right[both])
    result = torch.maximum(left, right)
    if not pairs.numel():
        return Neurons(result.expand(shape))
    products = tracer.nodes.new(node.name, pairs.shape[1], "product")
    edges_between(tracer, pairs[0], products, "left")
    edges_between(tracer, pairs[1], products, "right")
    result[both] = products[which]
    return Neurons(result.expand(shape))


def find_all(tracer: Tracer, *labels: Tensor) -> list[Tensor]:
    """Present labels of tensors of one shape, where all of them only repeat cut to length 1."""
    return [tracer.nodes.find(x) for x in without_repeats(labels)]


def with_parameter(tracer: Tracer, node: Node, x: Neurons, elements: Elements, kind: str) -> Value:
    """A parameter that is added to neurons or multiplied with them, entry by entry.

    Where each neuron has elements of its own, a scale is diagonal edges to new nodes and anything
    else a feature of the neuron; elements at different positions are slots. Elements that several
    neurons share belong to a node of their own, with edges of value 1 to those.
    """
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    whole, numbers = without_repeats([x.labels.expand(shape), elements.numbers.expand(shape)])
    labels = tracer.nodes.find(whole)
    pairs = _pairs(labels, numbers)
    if _uneven(pairs) and tracer.vector(whole, -1) is not None:  # tokens that are the same neurons after all
        labels = tracer.nodes.find(whole)
        pairs = _pairs(labels, numbers)
    result = Neurons(labels.expand(shape))
    neuron = labels >= 0
    if not pairs.numel() or _uneven(pairs):
        return result
    nodes = pairs[0].unique_consecutive()
    table = pairs[1].reshape(len(nodes), -1)  # (neurons, elements of each)
    sets, owner = table.unique(dim=0, return_inverse=True)
    slots = sets[:, 0] if sets.shape[1] == 1 else sets
    own = Elements(elements.parameter, slots)
    view = own.view()
    if view is None or sets.unique().numel() != sets.numel():
        return result
    name = f"{tracer.parameters[elements.parameter].name}"
    if len(sets) == len(nodes):
        nodes = nodes[owner.argsort()]
        if kind != "scale":
            tracer.add_bias(own, nodes, kind)
            return result
        targets = tracer.nodes.new(name, len(nodes))
        slot_shape = view.shape[1:]
        wide = View(
            view.parameter, (len(nodes), 1, 1, *slot_shape), (view.strides[0], 0, 0, *view.strides[1:]), view.offset
        )
        tracer.add_block(wide, nodes, targets, (len(nodes), 1, 1), slot_shape)
        swap = torch.full((tracer.nodes.starts[-1],), -1).index_copy(0, nodes, targets)
        return Neurons(torch.where(neuron, swap[labels.clamp(min=0)], labels).expand(shape))
    shared = tracer.nodes.new(name, len(sets), "parameter")
    tracer.add_bias(own, shared, kind)
    for k in range(len(sets)):
        tracer.add_block(None, shared[k : k + 1], nodes[owner == k], (1, int((owner == k).sum()), 1), kind="spread")
    return result


def _pairs(labels: Tensor, numbers: Tensor) -> Tensor:
    """Which neurons meet which elements: (2, pairs), sorted."""
    neuron = labels >= 0
    return unique_pairs(labels[neuron], numbers[neuron])[0]


def _uneven(pairs: Tensor) -> bool:
    """Whether some neurons meet more elements than others."""
    counts = pairs[0].unique_consecutive(return_counts=True)[1]
    return bool((counts != counts[:1]).any())


# ---------------------------------------------------------------------------------------------------
# Functions without weights

MOVES = {
    getattr(aten, name)
    for name in [
        "view",
        "reshape",
        "_unsafe_view",
        "permute",
        "transpose",
        "t",
        "numpy_T",
        "mT",
        "unsqueeze",
        "squeeze",
        "expand",
        "expand_as",
        "flatten",
        "unflatten",
        "slice",
        "select",
        "narrow",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "cat",
        "concat",
        "stack",
        "index",
        "index_select",
        "roll",
        "flip",
        "pad",
        "constant_pad_nd",
        "repeat",
        "repeat_interleave",
        "tile",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "detach_",
        "to",
        "_to_copy",
        "movedim",
        "swapaxes",
        "swapdims",
        "moveaxis",
        "unfold",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "lift_fresh_copy",
        "lift_fresh",
        "hsplit",
        "vsplit",
        "view_as",
        "reshape_as",
        "type_as",
        "hstack",
        "vstack",
        "rot90",
        "diagonal",
        "tensor_split",
        "squeeze_",
        "unsqueeze_",
        "ravel",
        "float",
        "double",
        "half",
        "im2col",
    ]
    if hasattr(aten, name)
}
DTYPES = {getattr(aten, n) for n in ("to", "_to_copy", "float", "double", "half", "type_as") if hasattr(aten, n)}
PADS = {aten.pad, aten.constant_pad_nd}

ACTIVATIONS = [
    "relu",
    "relu_",
    "relu6",
    "hardtanh",
    "hardtanh_",
    "gelu",
    "silu",
    "silu_",
    "sigmoid",
    "sigmoid_",
    "tanh",
    "tanh_",
    "leaky_relu",
    "leaky_relu_",
    "elu",
    "elu_",
    "selu",
    "selu_",
    "celu",
    "mish",
    "mish_",
    "softplus",
    "hardswish",
    "hardswish_",
    "hardsigmoid",
    "hardsigmoid_",
    "softmax",
    "log_softmax",
    "sin",
    "cos",
    "exp",
    "softsign",
    "glu",
    "logsigmoid",
    "rrelu",
    "prelu",
]


def move(tracer: Tracer, node: Node, args: tuple, kwargs: dict) -> Value:
    """Applies a function that moves entries to labels or elements."""
    packet = getattr(node.target, "overloadpacket", node.target)
    if packet in DTYPES:
        return args[0]
    # labels may repeat (stride 0) where the network's own tensor does not, so that only a copy has the new shape
    function = torch.reshape if packet in (aten.view, aten._unsafe_view) else node.target
    tensors = [a for a in _tensors((args, kwargs)) if isinstance(a, (Neurons, Elements, Unknown))]
    if any(isinstance(a, Unknown) for a in tensors):
        return tracer.unknown(node)
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
        parts = [torch.full(v.shape, -1) if isinstance(v, Tensor) else labels(v) for v in first]
        moved = node.target(parts, *args[1:], **kwargs)  # type: ignore[operator]
    else:
        if packet in PADS:
            args, kwargs = args[:2], {}
        rest = [a.labels if isinstance(a, Neurons) else a for a in args[1:]]
        moved = function(labels(first), *rest, **kwargs)  # type: ignore[operator]
    if isinstance(moved, (list, tuple)):
        return [Neurons(folded(m - shift if shift else m)) for m in moved]
    return Neurons(folded(moved - shift if shift else moved))


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


def _tensors(tree: Any) -> list:
    from torch.utils._pytree import tree_leaves

    return tree_leaves(tree)


def as_neurons(tracer: Tracer, node: Node, value: Value) -> Neurons:
    """A parameter used as if it were an activation (a class token): nodes whose bias it is; constants are no neurons."""
    if isinstance(value, Neurons):
        return value
    if not isinstance(value, Elements):
        return Neurons(torch.full(tuple(value.shape), -1))
    numbers, inverse = value.numbers.unique(return_inverse=True)
    nodes = tracer.nodes.new(tracer.parameters[value.parameter].name, len(numbers), "neuron")
    tracer.add_bias(Elements(value.parameter, numbers), nodes)
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
    for name in [
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "max_pool2d_with_indices",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "lp_pool2d",
        "_adaptive_avg_pool2d",
        "upsample_linear1d",
        "upsample_trilinear3d",
        "_upsample_bilinear2d_aa",
    ]
    if hasattr(aten, name)
]


@register_rule(*POOLS)
def pool(tracer: Tracer, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Pooling and resampling keep the channels."""
    value = node.meta["val"]
    shape = value.shape if isinstance(value, Tensor) else value[0].shape
    if not isinstance(x, Neurons):
        return Unknown(shape)
    channel = 1 if x.labels.dim() > 2 else 0
    channels = tracer.vector(x.labels, channel)
    if channels is None:
        return Unknown(shape)
    result = Neurons(channels.reshape(-1, *([1] * (len(shape) - channel - 1))).expand(shape))
    return result if isinstance(value, Tensor) else (result, *(Unknown(v.shape) for v in value[1:]))


REDUCTIONS = [
    getattr(aten, name)
    for name in [
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "norm",
        "logsumexp",
        "prod",
        "var_mean",
        "std_mean",
        "linalg_vector_norm",
    ]
    if hasattr(aten, name)
]


@register_rule(*REDUCTIONS)
def reduction(tracer: Tracer, node: Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Over positions of the same neurons these stay; different neurons meet in a new node."""
    value = node.meta["val"]
    first = value if isinstance(value, Tensor) else value[0]

    def wrap(result: Value) -> Value:
        return result if isinstance(value, Tensor) else (result, *(Unknown(v.shape) for v in value[1:]))

    if not isinstance(x, Neurons):
        return wrap(Unknown(first.shape))
    dims = _reduced_dims(x.shape, first.shape, args, kwargs)
    if dims is None:
        return wrap(Unknown(first.shape))
    labels = tracer.nodes.find(x.labels)
    kept = [d for d in range(labels.dim()) if d not in dims]
    rows = labels.permute(*kept, *dims).reshape(prod(labels.shape[d] for d in kept), -1)
    if (rows == rows[:, :1]).all():
        return wrap(Neurons(rows[:, 0].reshape(first.shape)))
    sets, which = rows.sort(dim=1).values.unique(dim=0, return_inverse=True)
    if len(sets) > 4096 or (sets < 0).any():
        return wrap(Unknown(first.shape))
    nodes = tracer.nodes.new(node.name, len(sets), "pool")
    for k, row in enumerate(sets):
        members = row.unique()
        tracer.add_block(None, members, nodes[k : k + 1], (1, 1, len(members)), kind="pool")
    return wrap(Neurons(nodes[which].reshape(first.shape)))


def _reduced_dims(before: torch.Size, after: torch.Size, args: tuple, kwargs: dict) -> list[int] | None:
    dims = kwargs.get("dim", next((a for a in args if isinstance(a, (list, tuple)) or type(a) is int), None))
    if dims is None or dims == []:
        return list(range(len(before))) if prod(after) == 1 else None
    dims = [dims] if isinstance(dims, int) else list(dims)
    return sorted(d % len(before) for d in dims)


def elementwise(tracer: Tracer, node: Node, args: tuple, kwargs: dict) -> Value:
    """Any other function: entries keep their meaning if the shape says that it works entry by entry."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return tracer.unknown(node)
    tensors = [a for a in _tensors((args, kwargs)) if isinstance(a, (Neurons, Elements, Unknown, Tensor))]
    for kind in (Neurons, Elements):
        for tensor in tensors:
            if isinstance(tensor, kind) and _broadcasts(tensor.shape, value.shape):
                return _kept(tracer, node, tensor, value.shape)
    return Unknown(value.shape)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


def _kept(tracer: Tracer, node: Node, value: Neurons | Elements, shape: torch.Size) -> Value:
    if isinstance(value, Elements):
        return value if value.shape == shape else value.move(torch.broadcast_to, (value, shape), {})
    name = str(getattr(node.target, "overloadpacket", node.target)).rsplit(".", 1)[-1]
    if name in ACTIVATIONS:
        labels = without_repeats([value.labels])[0].unique()
        tracer.activations.append((labels[labels >= 0], name.rstrip("_")))
    return Neurons(value.labels.expand(shape))


@register_rule(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.zeros_like, aten.ones_like,
               aten.rand_like, aten.randn_like, aten.full_like, aten.empty_like)  # fmt: skip
def creation(tracer: Tracer, node: Node, like: Value, *args: Any, **kwargs: Any) -> Value:
    """A constant of a tensor's shape."""
    return node.target(torch.zeros(tuple(like.shape)), *args, **kwargs)  # type: ignore[operator]
