"""Linear layers: linear, addmm, matmul, bilinear and grouped matrix products."""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.attention import product_of_activations, same_neurons
from ngopt.graph.rules.conversions import as_neurons, rearranged, transposed
from ngopt.graph.rules.pointwise import addition
from ngopt.graph.rules.registry import aten, functions, register_layer_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    Elements,
    Neurons,
    Product,
    Unknown,
    Value,
    has_any,
    same_along,
)

MAX_USES = 128
"""Of a weight in one call: large language models have 128 heads."""


@register_layer_rule(aten.linear)
def linear(
    tracer: Tracer,
    call: Node,
    x: Value,
    weight: Value,
    bias: Value = None,
    shape: torch.Size | None = None,
) -> Value:
    """y = x W^T + b; W (n_out, n_in). shape: of y, by default that of the node."""
    shape = tracer.shape_of(call) if shape is None else shape
    if not isinstance(weight, Elements):
        # an activation or a constant; (n_out, n_in)
        result = _computed_weight(tracer, call, x, transposed(weight), shape)
        if bias is None or isinstance(result, Unknown):
            return result
        return addition(tracer, call, result, bias)
    if isinstance(x, (Tensor, Unknown)):
        targets = tracer.new_layer(weight, weight.shape[0])
        # the initial state of a recurrent network, 0, adds nothing
        if not tracer.is_zero(call, x):
            kind = "constant" if isinstance(x, Tensor) else "neuron"
            name = f"{tracer.name_of(weight)}.in"
            sources = tracer.nodes.new(name, weight.shape[1], kind)
            tracer.edges(weight, sources, targets[:, None], call=call)
        add_bias(tracer, bias, targets)
        return Neurons(targets.expand(shape))
    x = as_neurons(tracer, x)
    tracer.read_features(x.labels, -1)
    rows, which = tracer.unify_rows(x.labels, -1)
    # too many different rows: linear_over_positions returns Unknown
    if _are_positions(rows) or len(rows) > MAX_USES:
        return linear_over_positions(tracer, call, x, weight, bias, shape)
    results = torch.full((len(rows), weight.shape[0]), NO_NEURON)
    for row, result in zip(rows, results, strict=True):
        if (row > 0).any():
            result[:] = dense_layer(tracer, call, row, weight, bias)
    # pristine, so that layers which are only summed become one layer
    return Neurons(results[which].expand(shape), is_pristine=True)


def _are_positions(rows: Tensor) -> bool:
    """Whether each row (r, n_in) is one neuron throughout, or none has a neuron."""
    if not (rows > 0).any():
        return True
    # a single row, or rows of one entry, may be features as well
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
    elif isinstance(bias, Neurons) and bias.shape == targets.shape:
        # of several parameters, such as of queries and values, 0 of keys
        is_neuron = bias.labels > 0
        tracer.edges(None, bias.labels[is_neuron], targets[is_neuron], "residual")


def _computed_weight(
    tracer: Tracer, call: Node, x: Value, weight: Value, shape: torch.Size
) -> Value:
    """x @ weight with a weight (..., n_in, n_out) that is no parameter, or a product of
    parameters."""
    if isinstance(weight, Product) and isinstance(x, Neurons):
        return _factor_by_factor(tracer, call, x, weight, shape)
    are_elements = isinstance(x, Elements) and isinstance(weight, Elements)
    if are_elements and len(x.shape) == len(weight.shape) == 2:
        return Product(shape, parameters=(x, weight), terms=("ij", "jk"), axes="ik")
    result = product_of_activations(tracer, call.name, x, weight, shape)
    is_constant = isinstance(weight, (Tensor, Unknown))
    # a fixed matrix mixes neurons, such as random features
    if isinstance(result, Unknown) and is_constant and isinstance(x, Neurons):
        targets = tracer.nodes.new(call.name, shape[-1])
        # no edges show which of them can be exchanged
        tracer.pin(x.labels, targets)
        return Neurons(targets.expand(shape))
    return result


def _factor_by_factor(
    tracer: Tracer, call: Node, x: Neurons, weight: Product, shape: torch.Size
) -> Value:
    rows, columns = weight.axes
    lengths = [n for parameter in weight.parameters for n in parameter.shape]
    sizes = dict(zip("".join(weight.terms), lengths, strict=True))
    unflat = rearranged(x, lambda a: a.unflatten(-1, [sizes[row] for row in rows]))
    equation = f"...{rows},{','.join(weight.terms)}->...{columns}"
    einsum = tracer.rules[aten.einsum]
    result = einsum(tracer, call, equation, [unflat, *weight.parameters])
    return rearranged(result, lambda y: y.reshape(shape))


def linear_over_positions(
    tracer: Tracer,
    call: Node,
    x: Neurons,
    weight: Elements,
    bias: Value,
    shape: torch.Size,
    dim: int = -1,
) -> Value:
    """A layer between positions, along a dimension.

    It is a component of the graph of its own, and labels stay. Unknown if neurons
    differ along the dimension.
    """
    name = tracer.name_of(weight)
    sources = x.positions
    # behind another layer over positions its targets are the sources
    if sources is None or len(sources) != weight.shape[1]:
        sources = tracer.nodes.new(f"{name}.positions", weight.shape[1], "position")
    targets = tracer.nodes.new(name, weight.shape[0], "position")
    tracer.edges(weight, sources, targets[:, None], call=call)
    add_bias(tracer, bias, targets)
    return same_neurons(x, dim, shape, targets)


@register_layer_rule(*functions("matmul mm bmm mv dot vdot _sparse_mm"))
def matmul(
    tracer: Tracer, call: Node, x: Value, other: Value, shape: torch.Size | None = None
) -> Value:
    """x @ other, either of which may be a parameter, or none (attention)."""
    shape = tracer.shape_of(call) if shape is None else shape
    if has_any((x, other), Elements) and min(len(x.shape), len(other.shape)) == 1:
        # as in torch, a vector is a row on the left and a column on the right
        left = "i" if len(x.shape) == 1 else "...ji"
        right = "i" if len(other.shape) == 1 else "...ik"
        equation = f"{left},{right}->{(left + right).replace('i', '')}"
        return tracer.rules[aten.einsum](tracer, call, equation, (x, other))
    if isinstance(other, Elements) and not isinstance(x, Elements):
        if len(other.shape) == 2:
            return linear(tracer, call, x, transposed(other), shape=shape)
        if isinstance(x, Neurons):
            return _batched_weight(tracer, call, x, other, shape)
    is_matrix = isinstance(x, (Elements, Product)) and len(x.shape) == 2
    if is_matrix and isinstance(other, Neurons):
        # W x = (x^T W^T)^T
        *lead, rows, columns = shape
        flipped = torch.Size((*lead, columns, rows))
        return transposed(linear(tracer, call, transposed(other), x, shape=flipped))
    return _computed_weight(tracer, call, x, other, shape)


def _batched_weight(
    tracer: Tracer, call: Node, x: Neurons, weight: Elements, shape: torch.Size
) -> Value:
    """(..., t, n_in) @ (..., n_in, n_out): a weight for each leading index."""
    lead = weight.shape[:-2]
    labels = x.labels.expand(*torch.broadcast_shapes(x.shape[:-2], lead), *x.shape[-2:])
    matrix = slice(None), slice(None)
    places_and_sources = []
    for place in _places(labels, lead):
        sources = tracer.unify_places(labels[..., *place, *matrix], -1)
        if sources is None:
            return Unknown(shape)
        places_and_sources.append((place, sources))
    results = torch.full(shape, NO_NEURON)
    for place, sources in places_and_sources:
        # a weight that is broadcast is the same at all places
        index = [0 if size == 1 else p for p, size in zip(place, lead, strict=True)]
        part = weight.apply(lambda w, index=index: w[tuple(index)].mT)
        # (n_out,), the same for all t
        results[..., *place, *matrix] = dense_layer(tracer, call, sources, part)
    return Neurons(results)


def _places(labels: Tensor, lead: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
    """Where labels (*, *lead, t, n_in) are multiplied with each weight of (*lead).

    A weight that is broadcast along a dimension is used once if the neurons are the
    same there, as in a batch, and otherwise at each index, as with heads.
    """
    axes = []
    for d, size in enumerate(lead, start=-2 - len(lead)):
        is_shared = size == 1 and same_along(labels, d)
        axes.append([slice(None)] if is_shared else range(labels.shape[d]))
    return product(*axes)


@register_layer_rule(aten.bilinear)
def bilinear(
    tracer: Tracer, call: Node, a: Value, b: Value, weight: Value, *_, **__
) -> Value:
    """y_k = a^T W_k b: dense edges from the products of all pairs of the inputs."""
    if not isinstance(a, Neurons) or not isinstance(b, Neurons):
        return tracer.unknown(call)
    if not isinstance(weight, Elements):
        return tracer.unknown(call)
    left = tracer.unify_places(a.labels, -1)
    right = tracer.unify_places(b.labels, -1)
    if left is None or right is None:
        return tracer.unknown(call)
    name = tracer.name_of(weight)
    # edges of value 1 need nodes at both ends
    left, right = tracer.source_nodes(left, name), tracer.source_nodes(right, name)
    count = len(left) * len(right)
    pairs = tracer.nodes.new(f"{name}.products", count, "product")
    products = pairs.reshape(len(left), len(right))
    tracer.edges(None, left[:, None], products, "left")
    tracer.edges(None, right, products, "right")
    # (n_out, left * right), in the order of the pairs
    matrix = weight.apply(lambda w: w.flatten(1))
    targets = dense_layer(tracer, call, pairs, matrix, tracer.argument(call, "bias"))
    return Neurons(targets.expand(tracer.shape_of(call)))


@register_layer_rule(*functions("_grouped_mm"), "transformers.grouped_mm_fallback")
def grouped_matmul(
    tracer: Tracer, call: Node, x: Value, weight: Value, *_, **__
) -> Value:
    """Rows of x (rows, n_in), group after group, each times its group's W (groups,
    n_in, n_out).

    Data decide how many rows a group has; here all groups have equally many.
    """
    if not isinstance(x, Neurons) or not isinstance(weight, Elements):
        return tracer.unknown(call)
    # other shapes have groups in the summed dimension, or in the result
    if len(x.shape) != 2 or len(weight.shape) != 3:
        return tracer.unknown(call)
    rows = len(x.labels)
    groups, _, n_out = weight.shape
    group = torch.arange(rows) * groups // rows
    sources = []
    for k in range(groups):
        labels = x.labels[group == k]
        nodes = tracer.unify_places(labels, -1) if len(labels) else None
        if nodes is not None:
            sources.append(nodes)
    if len(sources) < groups:
        return tracer.unknown(call)
    targets = tracer.new_layer(weight, groups * n_out).reshape(groups, n_out)
    # sources (groups, n_in, 1)
    ends = torch.stack(sources).unsqueeze(-1)
    tracer.edges(weight, ends, targets[:, None], call=call)
    return Neurons(targets[group])
