"""Layers with weights: linear, convolutional, embedding."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.entries import as_neurons, transposed
from ngopt.graph.rules.entrywise import elementwise
from ngopt.graph.rules.places import join_places
from ngopt.graph.rules.products import addition, product_sum
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import NO_NEURON, Neurons, Unknown, Value, same_along

aten = torch.ops.aten

USES = 128
"""At most so many uses of a weight in one call: large language models have 128 heads."""


@register_rule(aten.linear)
def linear(
    tracer: Tracer,
    call: Node,
    x: Value,
    weight: Value,
    bias: Value = None,
    shape: torch.Size | None = None,
) -> Value:
    """y = x W^T + b; W (n_out, n_in). shape: of y, where it is not the node's own."""
    shape = tracer.shape_of(call) if shape is None else shape
    if not isinstance(weight, Elements):
        return unknown_weight(tracer, call, x, transposed(weight), bias, shape)
    if isinstance(x, (Tensor, Unknown)):
        return first_layer(tracer, call, x, weight, bias, shape)
    x = as_neurons(tracer, call, x)
    rows, which = tracer.unify_rows(x.labels, -1)
    present = (rows > 0).any(1)
    is_mixing = x.shape[-1] > 1 and len(rows) > 1 and same_along(rows, 1)
    if is_mixing or not present.any() or len(rows) > USES:
        return position_mixing(tracer, call, x, weight, bias, shape)
    out = torch.full((len(rows), weight.shape[0]), NO_NEURON)
    for k in present.nonzero().flatten().tolist():
        targets = tracer.new_layer(weight, weight.shape[0])
        tracer.edges(weight, rows[k], targets[:, None], call=call)
        add_bias(tracer, bias, targets)
        out[k] = targets
    return Neurons(out[which].expand(shape), is_pristine=True)


def add_bias(tracer: Tracer, bias: Value, targets: Tensor) -> None:
    if isinstance(bias, Elements):
        tracer.edges(bias, None, targets, "bias")


def first_layer(
    tracer: Tracer,
    call: Node,
    x: Tensor | Unknown,
    weight: Elements,
    bias: Value,
    shape: torch.Size,
) -> Value:
    """A weight that is applied to no neurons but to constants, or to what nothing is known of."""
    targets = tracer.new_layer(weight, weight.shape[0])
    if not tracer.is_zero(call, x):  # of the first state of a recurrent network nothing comes
        kind = "constant" if isinstance(x, Tensor) else "neuron"
        name = f"{tracer.name_of(weight)}.in"
        sources = tracer.nodes.new(name, weight.shape[1], kind)
        tracer.edges(weight, sources, targets[:, None], call=call)
    add_bias(tracer, bias, targets)
    return Neurons(targets.expand(shape))


def unknown_weight(
    tracer: Tracer,
    call: Node,
    x: Value,
    weight: Value,
    bias: Value,
    shape: torch.Size,
) -> Value:
    """x @ weight + bias with a weight (..., n_in, n_out) that is another activation, or unknown."""
    result = product_sum(tracer, call.name, x, weight, shape)
    is_lost = isinstance(result, Unknown) and isinstance(weight, (Tensor, Unknown))
    if is_lost and isinstance(x, Neurons):
        targets = tracer.nodes.new(call.name, shape[-1])
        tracer.pin(x.labels, targets)  # no edges say which are twins
        result = Neurons(targets.expand(shape))
    if bias is None or isinstance(result, Unknown):
        return result
    return addition(tracer, call, result, bias)


def position_mixing(
    tracer: Tracer,
    call: Node,
    x: Neurons,
    weight: Elements,
    bias: Value,
    shape: torch.Size,
    dim: int = -1,
) -> Value:
    """A weight that mixes positions of each neuron, along a dimension.

    It is a component between positions, and labels stay.
    """
    name = tracer.name_of(weight)
    sources = x.positions
    if sources is None or len(sources) != weight.shape[1]:
        sources = tracer.nodes.new(f"{name}.positions", weight.shape[1], "position")
    targets = tracer.nodes.new(name, weight.shape[0], "position")
    tracer.edges(weight, sources, targets[:, None], call=call)
    add_bias(tracer, bias, targets)
    if not same_along(x.labels, dim):
        return Unknown(shape)
    first = x.labels.narrow(dim, 0, 1)
    return Neurons(first.expand(shape), positions=targets)


@register_rule(aten.addmm)
def addmm(
    tracer: Tracer,
    call: Node,
    bias: Value,
    x: Value,
    weight: Value,
    **_: Any,
) -> Value:
    return linear(tracer, call, x, transposed(weight), bias)


@register_rule(aten.matmul, aten.mm, aten.bmm)
def matmul(
    tracer: Tracer,
    call: Node,
    x: Value,
    other: Value,
    shape: torch.Size | None = None,
) -> Value:
    """x @ other, either of which may be a parameter; two activations multiply (attention)."""
    shape = tracer.shape_of(call) if shape is None else shape
    if isinstance(other, Elements) and isinstance(x, Neurons):
        if len(other.shape) == 2:
            return linear(tracer, call, x, transposed(other), shape=shape)
        return batched_weight(tracer, call, x, other, shape)
    is_first = isinstance(x, Elements) and len(x.shape) == 2
    if is_first and isinstance(other, Neurons) and len(shape) > 1:
        *lead, rows, columns = shape
        flipped = torch.Size((*lead, columns, rows))
        return transposed(linear(tracer, call, transposed(other), x, shape=flipped))
    return unknown_weight(tracer, call, x, other, None, shape)


def batched_weight(
    tracer: Tracer,
    call: Node,
    x: Neurons,
    weight: Elements,
    shape: torch.Size,
) -> Value:
    """(..., t, n_in) @ (..., n_in, n_out): a weight for each index of the leading dimensions."""
    *lead, _, n_out = weight.shape
    both = torch.broadcast_shapes(x.shape[:-2], tuple(lead))
    labels = x.labels.expand(*both, *x.shape[-2:])
    out = torch.full(shape, NO_NEURON)
    for place in product(*map(range, lead)):
        index = (..., *place, slice(None), slice(None))
        sources = tracer.unify_places(labels[index], -1)
        if sources is None:
            return Unknown(shape)
        targets = tracer.new_layer(weight, n_out)
        matrix = weight.apply(lambda w, place=place: w[place].mT)
        tracer.edges(matrix, sources, targets[:, None], call=call)
        out[index] = targets.expand(out[index].shape)
    return Neurons(out)


@register_rule(aten.bilinear)
def bilinear(
    tracer: Tracer,
    call: Node,
    a: Value,
    b: Value,
    weight: Value,
    bias: Value = None,
) -> Value:
    """y_k = a^T W_k b: dense edges from the products of all pairs of the inputs."""
    if not isinstance(a, Neurons) or not isinstance(b, Neurons):
        return tracer.unknown(call)
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    name = tracer.name_of(weight)
    left = tracer.unify_places(a.labels, -1)
    right = tracer.unify_places(b.labels, -1)
    if left is None or right is None:
        return tracer.unknown(call)
    left = tracer.source_nodes(left, name)
    right = tracer.source_nodes(right, name)
    n, m = len(left), len(right)
    pairs = tracer.nodes.new(f"{name}.products", n * m, "product")
    products = pairs.reshape(n, m)
    tracer.edges(None, left[:, None], products, "left")
    tracer.edges(None, right, products, "right")
    targets = tracer.new_layer(weight, weight.shape[0])
    matrix = weight.apply(lambda w: w.flatten(1))
    tracer.edges(matrix, pairs, targets[:, None], call=call)
    add_bias(tracer, bias, targets)
    return Neurons(targets.expand(tracer.shape_of(call)))


@register_rule(aten.conv1d, aten.conv2d, aten.conv3d)
def convolution(
    tracer: Tracer, call: Node, x: Value, weight: Value, bias: Value = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    """Channels are neurons, kernel positions slots (Kofinas et al. 2024, section 2.2).

    W (n_out, n_in / g, *k).
    """
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    is_pointwise = prod(weight.shape[2:]) == groups == 1
    x = as_neurons(tracer, call, x)
    channel = _channel(weight)
    if is_pointwise and _is_one_neuron(tracer, x.labels, channel):
        matrix = weight.apply(lambda w: w.flatten(1))
        shape = tracer.shape_of(call)
        return position_mixing(tracer, call, x, matrix, bias, shape, channel)
    cells = weight.apply(lambda w: w.unflatten(0, (groups, -1)))
    return _convolution(tracer, call, x, cells, bias)


@register_rule(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
def transposed_convolution(
    tracer: Tracer, call: Node, x: Value, weight: Value, bias: Value = None,
    stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    """As a convolution, with W (n_in, n_out / g, *k)."""
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    x = as_neurons(tracer, call, x)
    cells = weight.apply(lambda w: w.unflatten(0, (groups, -1)).transpose(1, 2))
    return _convolution(tracer, call, x, cells, bias)


def _convolution(
    tracer: Tracer,
    call: Node,
    x: Neurons,
    cells: Elements,
    bias: Value,
) -> Value:
    """cells: (g, n_out / g, n_in / g, *k)."""
    shape = tracer.shape_of(call)
    groups, n_target, n_source, *kernel = cells.shape
    places, which = _channels(tracer, x.labels, -len(kernel) - 1)
    counts = [len(rows) for rows in places]
    if sum(counts) > USES or 0 in counts:
        return Unknown(shape)
    layers = []
    for rows in places:
        channels = tracer.new_layer(cells, groups * n_target)
        targets = channels.reshape(groups, n_target, 1)
        for row in rows:
            row = tracer.source_nodes(row, tracer.name_of(cells))
            sources = row.reshape(groups, 1, n_source)
            tracer.edges(cells, sources, targets, call=call)
            if len(rows) > 1:
                tracer.pin(row)  # which of them is where matters
        add_bias(tracer, bias, channels)
        layers.append(channels)
    space = [1] * len(kernel)
    labels = torch.stack(layers)[which].reshape(*which.shape, -1, *space)
    return Neurons(labels.expand(shape), is_pristine=True)


def _channel(weight: Elements) -> int:
    """The dimension of a map in which its channels are, for a weight (n, m, *k)."""
    return 1 - len(weight.shape)


def _is_one_neuron(tracer: Tracer, labels: Tensor, channel: int) -> bool:
    """Whether the channels of each place are one neuron, and those of another place another.

    Then they are positions.
    """
    (cut,) = tracer.nodes.find_all(labels)
    if labels.shape[channel] == 1 or not same_along(cut, channel):
        return False
    return cut.unique().numel() > 1


def _channels(tracer: Tracer, labels: Tensor, channel: int) -> tuple[list[Tensor], Tensor]:
    """The different rows of channels in space, (r, n) for each different batch entry.

    Also which one is where, (*batch). Channels are other neurons in other places behind a pixel
    shuffle, say.
    """
    join_places(tracer, labels, channel)
    rows, which = tracer.unify_rows(labels, channel)
    batch = which.shape[: labels.dim() + channel]
    maps = which.reshape(batch.numel(), -1)
    found = [tuple(places.unique().tolist()) for places in maps]
    different = list(dict.fromkeys(found))
    present = []
    for places in different:
        own = rows[list(places)]
        present.append(own[(own > 0).any(1)])
    numbers = [different.index(places) for places in found]
    return present, torch.tensor(numbers).reshape(batch)


@register_rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sample(
    tracer: Tracer,
    call: Node,
    planes: Value,
    grid: Value,
    *_: Any,
) -> Value:
    """A learned grid (planes, features, *space): its places have edges to its features."""
    shape = tracer.shape_of(call)
    space = [1] * (len(shape) - 2)
    if isinstance(planes, Neurons):
        channels = tracer.unify_places(planes.labels, 1)
        if channels is None:
            return Unknown(shape)
        return Neurons(channels.reshape(-1, *space).expand(shape))
    if not isinstance(planes, Elements):
        return Unknown(shape)
    found = []
    for k in range(planes.shape[0]):
        name = f"{tracer.name_of(planes)}.{k}"
        plane = planes.apply(lambda p, k=k: p[k].flatten(1))
        features, size = plane.shape
        places = tracer.nodes.new(f"{name}.places", size, "position")
        targets = tracer.nodes.new(name, features)
        tracer.edges(plane, places, targets[:, None], call=call)
        found.append(targets)
    labels = torch.stack(found)
    return Neurons(labels.reshape(*labels.shape, *space).expand(shape))


@register_rule(aten.embedding)
def embedding(
    tracer: Tracer,
    call: Node,
    weight: Value,
    index: Value,
    *_: Any,
) -> Value:
    """Rows of a table are input nodes; W (tokens, n)."""
    if not isinstance(weight, Elements):
        return elementwise(tracer, call, (weight,), {})
    labels = _table(tracer, call, weight).expand(tracer.shape_of(call))
    return Neurons(labels, is_pristine=True)


def _table(tracer: Tracer, call: Node, weight: Elements) -> Tensor:
    """The neurons (n,) of a table (tokens, n)."""
    rows, columns = weight.shape
    tokens = tracer.nodes.new(f"{tracer.name_of(weight)}.tokens", rows, "token")
    targets = tracer.new_layer(weight, columns)
    tracer.edges(weight, tokens[:, None], targets, call=call)
    return targets


BAGS = [
    getattr(aten, name)
    for name in ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
]


@register_rule(*BAGS)
def embedding_bag(
    tracer: Tracer, call: Node, weight: Value, index: Value, offsets: Value = None,
    by_frequency: bool = False, mode: int = 0, sparse: bool = False, factors: Value = None, *_: Any,
) -> Value:  # fmt: skip
    """Rows of a table, as in `embedding`, summed or averaged over bags.

    factors: one for each index, (indices,).
    """
    bags, *rest = call.meta["val"]
    others = [Unknown(v.shape) for v in rest]
    if not isinstance(weight, Elements):
        return (Unknown(bags.shape), *others)
    targets = _table(tracer, call, weight)
    found: Value = Neurons(targets.expand(bags.shape))
    if isinstance(factors, Neurons):
        # the product of a row, of all indices, and a matrix, of rows of the table
        weights = Neurons(factors.labels[None])
        rows = Neurons(targets.expand(len(factors.labels), -1))
        shape = torch.Size((1, bags.shape[1]))
        found = product_sum(tracer, call.name, weights, rows, shape)
        if isinstance(found, Neurons):
            found = Neurons(found.labels.expand(bags.shape))
        else:
            found = Unknown(bags.shape)
    return (found, *others)
