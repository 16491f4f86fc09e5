"""Layers with weights: linear ones, embeddings and learned grids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.attention import addition, product_of_activations
from ngopt.graph.rules.pointwise import pointwise_function
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.rules.reshaping import as_neurons, transposed, transposed_shape
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    Elements,
    Neurons,
    Unknown,
    Value,
    same_along,
)

aten = torch.ops.aten

MAX_USES = 128
"""At most so many uses of a weight in one call: large language models have 128 heads.
"""


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
        # a layer made it, as in generator, or it is constant; (n_out, n_in)
        return linear_with_computed_weight(
            tracer, call, x, transposed(weight), bias, shape
        )
    if isinstance(x, (Tensor, Unknown)):
        return linear_without_neurons(tracer, call, x, weight, bias, shape)
    x = as_neurons(tracer, call, x)
    rows, which = tracer.unify_rows(x.labels, -1)
    # too many rows differ along n_in, of which linear_over_positions says that nothing is
    # known
    if _are_positions(rows) or len(rows) > MAX_USES:
        return linear_over_positions(tracer, call, x, weight, bias, shape)
    results = torch.full((len(rows), weight.shape[0]), NO_NEURON)
    for row, result in zip(rows, results, strict=True):
        if (row > 0).any():
            result[:] = dense_layer(tracer, call, row, weight, bias)
    # pristine, so that layers which are only summed are one, as in deep sets
    return Neurons(results[which].expand(shape), is_pristine=True)


def _are_positions(rows: Tensor) -> bool:
    """Whether rows (r, n_in) are of positions: each is one neuron throughout, or none
    is one."""
    if not (rows > 0).any():
        return True
    # one row has no other to differ from, and rows of one entry are always of one
    # neuron
    return min(rows.shape) > 1 and same_along(rows, 1)


def dense_layer(
    tracer: Tracer, call: Node, sources: Tensor, weight: Elements, bias: Value = None
) -> Tensor:
    """New neurons (n_out,) with edges from all sources (n_in,); W (n_out, n_in)."""
    targets = tracer.new_layer(weight, weight.shape[0])
    tracer.edges(weight, sources, targets[:, None], call=call)
    add_bias(tracer, bias, targets)
    return targets


def add_bias(tracer: Tracer, bias: Value, targets: Tensor) -> None:
    if isinstance(bias, Elements):
        tracer.edges(bias, None, targets, "bias")


def linear_without_neurons(
    tracer: Tracer,
    call: Node,
    x: Tensor | Unknown,
    weight: Elements,
    bias: Value,
    shape: torch.Size,
) -> Value:
    """A weight that is applied to no neurons but to constants, or to what nothing is
    known of."""
    targets = tracer.new_layer(weight, weight.shape[0])
    if not tracer.is_zero(
        call, x
    ):  # of the first state of a recurrent network nothing comes
        kind = "constant" if isinstance(x, Tensor) else "neuron"
        name = f"{tracer.name_of(weight)}.in"
        sources = tracer.nodes.new(name, weight.shape[1], kind)
        tracer.edges(weight, sources, targets[:, None], call=call)
    add_bias(tracer, bias, targets)
    return Neurons(targets.expand(shape))


def linear_with_computed_weight(
    tracer: Tracer, call: Node, x: Value, weight: Value, bias: Value, shape: torch.Size
) -> Value:
    """x @ weight + bias with a weight (..., n_in, n_out) that is another activation, or
    unknown."""
    result = product_of_activations(tracer, call.name, x, weight, shape)
    is_lost = isinstance(result, Unknown) and isinstance(weight, (Tensor, Unknown))
    # a fixed matrix mixes neurons, as the random features in equilibrium
    if is_lost and isinstance(x, Neurons):
        targets = tracer.nodes.new(call.name, shape[-1])
        tracer.pin(x.labels, targets)  # no edges say which are twins
        result = Neurons(targets.expand(shape))
    if bias is None or isinstance(result, Unknown):
        return result
    return addition(tracer, call, result, bias)


def linear_over_positions(
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
    # behind another layer over places its targets are the sources, as in mixer
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
    tracer: Tracer, call: Node, bias: Value, x: Value, weight: Value, **_: Any
) -> Value:
    return linear(tracer, call, x, transposed(weight), bias)


@register_rule(aten.matmul, aten.mm, aten.bmm)
def matmul(
    tracer: Tracer, call: Node, x: Value, other: Value, shape: torch.Size | None = None
) -> Value:
    """x @ other, either of which may be a parameter; two activations multiply
    (attention)."""
    shape = tracer.shape_of(call) if shape is None else shape
    if (
        isinstance(other, Elements)
        and len(other.shape) == 2
        and not isinstance(x, Elements)
    ):
        return linear(tracer, call, x, transposed(other), shape=shape)
    if isinstance(x, Neurons) and isinstance(other, Elements):
        return batched_weight(tracer, call, x, other, shape)
    is_weight = isinstance(x, Elements) and len(x.shape) == 2
    # W times a vector is not transposed: its shape has one dimension
    if is_weight and isinstance(other, Neurons) and len(shape) > 1:
        return _weight_first(tracer, call, x, other, shape)
    return linear_with_computed_weight(tracer, call, x, other, None, shape)


def _weight_first(
    tracer: Tracer, call: Node, weight: Value, x: Neurons, shape: torch.Size
) -> Value:
    """W x = (x^T W^T)^T."""
    result = linear(tracer, call, transposed(x), weight, shape=transposed_shape(shape))
    return transposed(result)


def batched_weight(
    tracer: Tracer, call: Node, x: Neurons, weight: Elements, shape: torch.Size
) -> Value:
    """(..., t, n_in) @ (..., n_in, n_out): a weight for each index of the leading
    dimensions."""
    lead = weight.shape[:-2]
    both = torch.broadcast_shapes(x.shape[:-2], lead)
    labels = x.labels.expand(*both, *x.shape[-2:])
    rows = slice(None), slice(None)
    found = []
    for place in _places(labels, lead):
        sources = tracer.unify_places(labels[..., *place, *rows], -1)
        if sources is None:
            return Unknown(shape)
        found.append((place, sources))
    results = torch.full(shape, NO_NEURON)
    for place, sources in found:
        # a weight that is broadcast is the same at all places
        own = tuple(0 if size == 1 else p for p, size in zip(place, lead, strict=True))
        matrix = weight.apply(lambda w, own=own: w[own].mT)
        # (n_out,), the same for all t
        results[..., *place, *rows] = dense_layer(tracer, call, sources, matrix)
    return Neurons(results)


def _places(labels: Tensor, lead: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
    """Where in the leading dimensions of labels (*, *lead, t, n_in) weights (*lead) are
    used.

    Along a dimension in which the weight is broadcast: all at once where neurons are
    the same, as in a batch, else one place after the other, as with heads.
    """
    axes = []
    for d, size in enumerate(lead, start=-2 - len(lead)):
        is_shared = size == 1 and same_along(labels, d)
        axes.append([slice(None)] if is_shared else range(labels.shape[d]))
    return product(*axes)


@register_rule(aten.bilinear)
def bilinear(
    tracer: Tracer, call: Node, a: Value, b: Value, weight: Value, bias: Value = None
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
    # edges of value 1 need nodes at both ends; for elements alone `Tracer.edges` makes
    # them
    left = tracer.source_nodes(left, name)
    right = tracer.source_nodes(right, name)
    count = len(left) * len(right)
    pairs = tracer.nodes.new(f"{name}.products", count, "product")
    products = pairs.reshape(len(left), len(right))
    tracer.edges(None, left[:, None], products, "left")
    tracer.edges(None, right, products, "right")
    # (n_out, left * right), in the order of the pairs
    matrix = weight.apply(lambda w: w.flatten(1))
    targets = dense_layer(tracer, call, pairs, matrix, bias)
    return Neurons(targets.expand(tracer.shape_of(call)))


@register_rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def grid_sample(
    tracer: Tracer, call: Node, planes: Value, grid: Value, *_: Any
) -> Value:
    """A learned grid (planes, features, *space): its places have edges to its features."""
    shape = tracer.shape_of(call)
    labels = None
    if isinstance(planes, Neurons):
        labels = tracer.unify_places(planes.labels, 1)
    elif isinstance(planes, Elements):
        count = planes.shape[0]
        features = [_features_of_plane(tracer, call, planes, k) for k in range(count)]
        labels = torch.stack(features)
    if labels is None:
        return Unknown(shape)
    # (features,) of activations, (planes, features) of a parameter
    space = [1] * (len(shape) - 2)
    labels = labels.reshape(*labels.shape, *space)
    return Neurons(labels.expand(shape))


def _features_of_plane(tracer: Tracer, call: Node, planes: Elements, k: int) -> Tensor:
    """New neurons (features,) of one of several planes (planes, features, *space)."""
    name = f"{tracer.name_of(planes)}.{k}"
    # each plane is read at coordinates of its own, as in triplane: places are not
    # shared
    plane = planes.apply(lambda p: p[k].flatten(1))
    features, size = plane.shape
    places = tracer.nodes.new(f"{name}.places", size, "position")
    targets = tracer.nodes.new(name, features)
    tracer.edges(plane, places, targets[:, None], call=call)
    return targets


@register_rule(aten.embedding)
def embedding(
    tracer: Tracer, call: Node, weight: Value, index: Value, *_: Any
) -> Value:
    """Rows of a table are input nodes; W (tokens, n)."""
    if not isinstance(weight, Elements):
        return pointwise_function(tracer, call, (weight,), {})
    # which row an index takes is data: all places have the same neurons
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
    tracer: Tracer,
    call: Node,
    weight: Value,
    index: Value,
    offsets: Value = None,
    by_frequency: bool = False,
    mode: int = 0,
    sparse: bool = False,
    factors: Value = None,
    *_: Any,
) -> Value:
    """Rows of a table, as in `embedding`, summed or averaged over bags.

    factors: one for each index, (indices,).
    """
    # torch gives places beside the bags: offsets, sizes, and those of maxima
    bags, *rest = call.meta["val"]
    others = [Unknown(v.shape) for v in rest]
    if not isinstance(weight, Elements):
        return (Unknown(bags.shape), *others)
    labels = _table(tracer, call, weight)
    if isinstance(factors, Neurons):
        labels = _weighted_rows(tracer, call, factors.labels, labels)
    if labels is None:
        return (Unknown(bags.shape), *others)
    return (Neurons(labels.expand(bags.shape)), *others)


def _weighted_rows(
    tracer: Tracer, call: Node, factors: Tensor, row: Tensor
) -> Tensor | None:
    """The neurons (1, n) of a sum of rows with a factor each; None if these are too
    many.

    factors: (indices,). row: the neurons of every row, (n,).
    """
    # the product of a row, of all indices, and a matrix, of rows of the table
    left = Neurons(factors[None])
    right = Neurons(row.expand(len(factors), -1))
    shape = torch.Size((1, len(row)))
    result = product_of_activations(tracer, call.name, left, right, shape)
    return result.labels if isinstance(result, Neurons) else None
