"""Layers with weights: linear, convolutional, embedding."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.rules.edges import accompany, add_bias, connect, connect_cells, join_places
from ngopt.graph.rules.entries import as_neurons, transposed
from ngopt.graph.rules.entrywise import elementwise, is_declared_entrywise
from ngopt.graph.rules.products import addition, product_sum
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
)

aten = torch.ops.aten

USES = 128
"""At most so many uses of a weight in one call, each a block of edges: large language models have 128 heads."""


@register_rule(aten.linear)
def linear(
    tracer: Tracer, node: Node, x: Value, weight: Value, bias: Value = None, shape: torch.Size | None = None
) -> Value:
    """y = x W^T + b; W (n_out, n_in). shape: of y, where it is not the node's own."""
    shape = tracer.shape_of(node) if shape is None else shape
    if not isinstance(weight, Elements):
        return unknown_weight(tracer, node, x, transposed(weight), bias, shape)
    if isinstance(x, (Tensor, Unknown)):
        return first_layer(tracer, node, x, weight, bias, shape)
    x = as_neurons(tracer, node, x)
    name = tracer.owner(weight.parameter)
    rows, which = tracer.rows(x.labels, -1)
    present = (rows >= 0).any(1)
    mixes = x.shape[-1] > 1 and len(rows) > 1 and bool((rows == rows[:, :1]).all())
    if mixes or not present.any() or len(rows) > USES:
        return position_mixing(tracer, node, x, weight, bias, shape)
    out = torch.full((len(rows), weight.shape[0]), -1)
    for k in present.nonzero().flatten().tolist():
        out[k] = tracer.nodes.new(name, weight.shape[0])
        connect(tracer, weight, tracer.source_nodes(rows[k], name), out[k])
        add_bias(tracer, bias, out[k])
    tracer.pristine.add(node)
    return Neurons(out[which].expand(shape))


def first_layer(
    tracer: Tracer, node: Node, x: Tensor | Unknown, weight: Elements, bias: Value, shape: torch.Size
) -> Value:
    """A weight that is applied to no neurons but to constants, or to what nothing is known of."""
    name = tracer.owner(weight.parameter)
    targets = tracer.nodes.new(name, weight.shape[0])
    if not tracer.is_zero(node, x):  # of the first state of a recurrent network nothing comes
        kind = "constant" if isinstance(x, Tensor) else "neuron"
        connect(tracer, weight, tracer.nodes.new(f"{name}.in", weight.shape[1], kind), targets)
    add_bias(tracer, bias, targets)
    return Neurons(targets.expand(shape))


def unknown_weight(tracer: Tracer, node: Node, x: Value, weight: Value, bias: Value, shape: torch.Size) -> Value:
    """x @ weight + bias with a weight (..., n_in, n_out) that is no parameter: another activation, or unknown."""
    result = product_sum(tracer, node.name, x, weight, shape)
    if isinstance(result, Unknown) and isinstance(x, Neurons) and isinstance(weight, (Tensor, Unknown)):
        targets = tracer.nodes.new(node.name, shape[-1])
        tracer.pin(x.labels, targets)  # no edges say which are twins
        result = Neurons(targets.expand(shape))
    return result if bias is None or isinstance(result, Unknown) else addition(tracer, node, result, bias)


def position_mixing(
    tracer: Tracer, node: Node, x: Neurons, weight: Elements, bias: Value, shape: torch.Size, dim: int = -1
) -> Value:
    """A weight that mixes positions of each neuron, along a dimension: a component between positions, labels stay."""
    name = tracer.owner(weight.parameter)
    sources = _mixed_before(tracer, node)
    if sources is None or len(sources) != weight.shape[1]:
        sources = tracer.nodes.new(f"{name}.positions", weight.shape[1], "position")
    targets = tracer.nodes.new(name, weight.shape[0], "position")
    connect(tracer, weight, sources, targets)
    add_bias(tracer, bias, targets)
    tracer.mixed[node] = targets
    labels = x.labels
    first = labels.narrow(dim, 0, 1)
    return Neurons(first.expand(shape)) if (labels == first).all() else Unknown(shape)


def _mixed_before(tracer: Tracer, node: Node) -> Tensor | None:
    """The positions that another weight has made of what this one is applied to, entry by entry in between."""
    while True:
        sources = [a for a in node.all_input_nodes if isinstance(tracer.values[a], Neurons)]
        if len(sources) != 1:
            return None
        node = sources[0]
        if node in tracer.mixed:
            return tracer.mixed[node]
        if not is_declared_entrywise(node):
            return None


@register_rule(aten.addmm)
def addmm(tracer: Tracer, node: Node, bias: Value, x: Value, weight: Value, **_: Any) -> Value:
    return linear(tracer, node, x, transposed(weight), bias)


@register_rule(aten.matmul, aten.mm, aten.bmm)
def matmul(tracer: Tracer, node: Node, x: Value, other: Value, shape: torch.Size | None = None) -> Value:
    """x @ other, either of which may be a parameter; two activations multiply (attention)."""
    shape = tracer.shape_of(node) if shape is None else shape
    if isinstance(other, Elements) and len(other.shape) == 2 and isinstance(x, Neurons):
        return linear(tracer, node, x, transposed(other), shape=shape)
    if isinstance(x, Elements) and len(x.shape) == 2 and isinstance(other, Neurons) and len(shape) > 1:
        flipped = torch.Size((*shape[:-2], shape[-1], shape[-2]))
        return transposed(linear(tracer, node, transposed(other), x, shape=flipped))
    if isinstance(other, Elements) and isinstance(x, Neurons):
        return batched_weight(tracer, x, other, shape)
    return unknown_weight(tracer, node, x, other, None, shape)


def batched_weight(tracer: Tracer, x: Neurons, weight: Elements, shape: torch.Size) -> Value:
    """(..., t, n_in) @ (..., n_in, n_out) with its own weight for each index of the leading dimensions."""
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
        piece = weight.move(lambda w, place=tuple(place): w[place].mT, (weight,), {})
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
    if groups > 1 and weight.also:
        tracer.fixed.add(weight.parameter)
    if not isinstance(x, Neurons):
        x = as_neurons(tracer, node, x)
    view, name = weight.view(), tracer.owner(weight.parameter)
    assert view is not None
    if _is_one_neuron(tracer, x.labels, channel) and prod(weight.shape[2:]) == groups == 1 and not swap:
        return position_mixing(tracer, node, x, weight.move(torch.flatten, (weight, 1), {}), bias, shape, channel)
    places, which = _channels(tracer, x.labels, channel)
    if sum(map(len, places)) > USES or not all(map(len, places)):
        return Unknown(shape)
    rows, columns = (view.strides[1], view.strides[0]) if swap else view.strides[:2]
    n_target = view.shape[1] if swap else view.shape[0] // groups
    n_source = view.shape[0] // groups if swap else view.shape[1]
    step = n_source * columns if swap else n_target * rows
    kernel = view.shape[2:]
    strides = (step if groups > 1 else 0, rows, columns, *view.strides[2:])
    cells = View(weight.parameter, (groups, n_target, n_source, *kernel), strides, view.offset)
    factors = [o.move(torch.transpose, (o, 0, 1), {}) if swap else o for o in weight.also]
    out = torch.empty(len(places), groups * n_target, dtype=torch.long)
    for k, sets in enumerate(places):
        out[k] = tracer.nodes.new(name, groups * n_target)
        for sources in sets:
            sources = tracer.source_nodes(sources, name)
            connect_cells(tracer, cells, sources, out[k])
            if groups == 1:
                accompany(tracer, weight, factors, sources, out[k])
            if len(sets) > 1:
                tracer.pin(sources)  # which of them is where matters
        add_bias(tracer, bias, out[k])
    tracer.pristine.add(node)
    return Neurons(out[which].reshape(*which.shape, -1, *([1] * len(kernel))).expand(shape))


def _is_one_neuron(tracer: Tracer, labels: Tensor, channel: int) -> bool:
    """Whether the channels of each place are one neuron, and those of another place another: they are positions."""
    (cut,) = tracer.nodes.find_all(labels)
    if labels.shape[channel] == 1 or (cut != cut.narrow(channel, 0, 1)).any():
        return False
    return cut.unique().numel() > 1


def _channels(tracer: Tracer, labels: Tensor, channel: int) -> tuple[list[Tensor], Tensor]:
    """The different rows of channels in space, (r, n) for each different batch entry, and which one is where, (*batch).

    Channels are other neurons in other places behind a pixel shuffle, say.
    """
    join_places(tracer, labels, channel)
    rows, which = tracer.rows(labels, channel)
    batch = which.shape[: labels.dim() + channel]
    found = [tuple(places.unique().tolist()) for places in which.reshape(batch.numel(), -1)]
    different = list(dict.fromkeys(found))
    present = [rows[list(f)] for f in different]
    return [r[(r >= 0).any(1)] for r in present], torch.tensor([different.index(f) for f in found]).reshape(batch)


@register_rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sample(tracer: Tracer, node: Node, planes: Value, grid: Value, *_: Any) -> Value:
    """A learned grid (planes, features, *space): the places of each plane are nodes with edges to its features."""
    shape = tracer.shape_of(node)
    if isinstance(planes, Neurons):
        channels = tracer.vector(planes.labels, 1)
        return (
            Unknown(shape) if channels is None else Neurons(channels.reshape(-1, *[1] * (len(shape) - 2)).expand(shape))
        )
    if not isinstance(planes, Elements) or planes.view() is None:
        return Unknown(shape)
    name, count = tracer.owner(planes.parameter), planes.shape[1]
    out = torch.empty(shape[:2], dtype=torch.long)
    for k in range(planes.shape[0]):
        plane = planes.move(lambda p, k=k: p[k].flatten(1), (planes,), {})
        places = tracer.nodes.new(f"{name}.{k}.places", plane.shape[1], "position")
        out[k] = tracer.nodes.new(f"{name}.{k}", count)
        connect(tracer, plane, places, out[k])
    return Neurons(out.reshape(*out.shape, *[1] * (len(shape) - 2)).expand(shape))


@register_rule(aten.embedding)
def embedding(tracer: Tracer, node: Node, weight: Value, index: Value, *_: Any) -> Value:
    """Rows of a table are input nodes; W (tokens, n)."""
    if not isinstance(weight, Elements):
        return elementwise(tracer, node, (weight,), {})
    tracer.pristine.add(node)
    return Neurons(_table(tracer, weight).expand(tracer.shape_of(node)))


def _table(tracer: Tracer, weight: Elements) -> Tensor:
    """The neurons (n,) of a table (tokens, n)."""
    name = tracer.owner(weight.parameter)
    tokens = tracer.nodes.new(f"{name}.tokens", weight.shape[0], "token")
    targets = tracer.nodes.new(name, weight.shape[1])
    connect(tracer, weight.move(torch.t, (weight,), {}), tokens, targets)
    return targets


@register_rule(*(getattr(aten, n) for n in ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")))
def embedding_bag(
    tracer: Tracer, node: Node, weight: Value, index: Value, offsets: Value = None, by_frequency: bool = False,
    mode: int = 0, sparse: bool = False, factors: Value = None, *_: Any,
) -> Value:  # fmt: skip
    """Rows of a table, as in `embedding`, summed or averaged over bags; factors: one for each index, (indices,)."""
    bags, *rest = node.meta["val"]
    others = [Unknown(v.shape) for v in rest]
    if not isinstance(weight, Elements):
        return (Unknown(bags.shape), *others)
    found: Value = Neurons(_table(tracer, weight).expand(bags.shape))
    if isinstance(factors, Neurons):  # the product of a row, of all indices, and a matrix, of rows of the table
        rows = Neurons(found.labels[:1].expand(len(factors.labels), -1))
        found = product_sum(tracer, node.name, Neurons(factors.labels[None]), rows, torch.Size((1, bags.shape[1])))
        found = Neurons(found.labels.expand(bags.shape)) if isinstance(found, Neurons) else Unknown(bags.shape)
    return (found, *others)
