"""Activations with each other: sums, products and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.bare_parameters import with_parameter
from ngopt.graph.rules.neuron_pairs import (
    difference_of,
    edges_per_use,
    pair_nodes,
    product_of,
    sum_of,
)
from ngopt.graph.rules.pointwise import pointwise_function, tell_apart_by_constant
from ngopt.graph.rules.registry import Rule, register_rule
from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    nodes_among,
    same_along,
    unique_pairs,
    with_zero_strides,
    without_repeats,
)

aten = torch.ops.aten

MAX_PRODUCTS = 4096
"""At most so many products in a matrix product that is no scores or values of an
attention."""
MAX_ENTRIES = 1 << 20
"""At most so many different entries of that product are looked at."""


@register_rule(aten.scaled_dot_product_attention)
def attention(
    tracer: Tracer,
    call: Node,
    q: Value,
    k: Value,
    v: Value,
    mask: Value = None,
    *_: Any,
    **__: Any,
) -> Value:
    """softmax(q k^T + mask) v with heads kept apart; grouped-query heads are repeated."""
    if (
        not isinstance(q, Neurons)
        or not isinstance(k, Neurons)
        or not isinstance(v, Neurons)
    ):
        return tracer.unknown(call)
    # dropout, is_causal and scale are passed over: they tell no neurons apart
    k = _repeated(k, q)
    v = _repeated(v, q)
    keys = Neurons(k.labels.mT)
    shape = torch.Size((*q.shape[:-1], keys.shape[-1]))
    scores = product_of_activations(tracer, call.name, q, keys, shape)
    if isinstance(scores, Neurons):
        scores = _masked(tracer, call, scores, mask)
        heads = nodes_among(scores.labels)
        # no function (None): all heads go through it, so that it tells none apart
        tracer.applied_functions.append(AppliedFunction(heads, "softmax", None))
    name = f"{call.name}.values"
    return product_of_activations(tracer, name, scores, v, tracer.shape_of(call))


def _repeated(x: Neurons, q: Neurons) -> Neurons:
    """Keys or values (..., heads, n, d), a head for each of the queries."""
    if len(q.shape) < 3 or q.shape[-3] <= x.shape[-3]:
        return x
    # as in torch, heads of queries that follow one another share one of keys
    ratio = q.shape[-3] // x.shape[-3]
    return Neurons(x.labels.repeat_interleave(ratio, -3))


def _masked(tracer: Tracer, call: Node, scores: Neurons, mask: Value) -> Neurons:
    if isinstance(mask, Elements):
        return with_parameter(tracer, call, scores, mask, "shift")
    if isinstance(mask, Neurons):
        return sum_of(tracer, call, scores, mask)
    if isinstance(mask, Tensor):
        tell_apart_by_constant(tracer, scores, mask)
    return scores


def product_of_activations(
    tracer: Tracer, name: str, a: Value, b: Value, shape: torch.Size
) -> Value:
    """a @ b of two activations, (..., t, n) and (..., n, m).

    Where the summed index runs over neurons (q k^T), each pair of them is a product,
    and all products that are summed meet in one node, a head. Where it runs over
    positions (attention times values), the neurons of b are weighted by those of a,
    each pair again a product. What differs from position to position is joined if
    nothing keeps it apart, as the keys of a prefix and those of tokens.
    """
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        return _of_activations(tracer, name, a.labels, b.labels, shape)
    if isinstance(a, Neurons) and isinstance(b, (Tensor, Unknown)):
        return _mixed(a, -1, shape)
    if isinstance(b, Neurons) and isinstance(a, (Tensor, Unknown)):
        rows = max(-2, -len(b.shape))  # a vector is a column
        return _mixed(b, rows, shape)
    return Unknown(shape)


def _mixed(x: Neurons, dim: int, shape: torch.Size) -> Value:
    """What is no neurons mixes positions along a dimension, where they are the same
    neurons."""
    if not same_along(x.labels, dim):
        return Unknown(shape)
    first = x.labels.narrow(dim, 0, 1)
    return Neurons(first.expand(shape))


def _of_activations(
    tracer: Tracer, name: str, a: Tensor, b: Tensor, shape: torch.Size
) -> Value:
    """The product of labels (..., t, n) and (..., n, m); unknown where `_products`
    finds none."""
    left, right = _matrices(tracer, a, b)
    r, t, _ = left.shape
    m = right.shape[2]
    labels = _products(tracer, name, left, right)
    if labels is None:
        return Unknown(shape)
    whole = labels.expand(r, t, m)
    return Neurons(whole.reshape(shape))


def _matrices(tracer: Tracer, a: Tensor, b: Tensor) -> list[Tensor]:
    """Present labels of two tensors that are multiplied, (r, t, n) and (r, n, m)."""
    # as in torch, a vector is a row on the left and a column on the right
    a = a[None] if a.dim() == 1 else a
    b = b[:, None] if b.dim() == 1 else b
    # (1,): two plain matrices get an axis that can be flattened, too
    lead = torch.broadcast_shapes((1,), a.shape[:-2], b.shape[:-2])
    whole = [x.expand(*lead, -1, -1) for x in (a, b)]
    return [tracer.nodes.find(x).flatten(0, -3) for x in whole]


def _products(tracer: Tracer, name: str, left: Tensor, right: Tensor) -> Tensor | None:
    """Labels that broadcast to (r, t, m), of labels (r, t, n) and (r, n, m).

    None where there are too many products, or any entry is no neuron.
    """
    # scores of an attention: a head is one node at all positions
    is_one_score = same_along(left, 1) and same_along(left, 2)
    # heads of one neuron each have one value at all positions
    are_values = not same_along(right, 2) or (
        right.shape[1] > 1 and same_along(right, 1)
    )
    weighs = is_one_score and are_values
    # neurons of values are along m, those of keys along n
    right = _unify_positions(tracer, right, 2 if weighs else 1)
    if weighs and same_along(right, 1):
        heads = left[:, 0, 0]
        return _weighted(tracer, name, heads, right[:, 0])
    if same_along(right, 2):
        left = _unify_positions(tracer, left, 2)
        right = tracer.nodes.find(right)
        if same_along(left, 1):
            keys = right[:, :, 0]
            return _scores(tracer, name, left[:, 0], keys)
    return _pooled_products(tracer, name, left, right)


def _unify_positions(tracer: Tracer, labels: Tensor, dim: int) -> Tensor:
    """Labels (r, n, m), the same at all positions of each (n, m) where nothing keeps
    them apart.

    dim: that of the neurons; positions are along the other.
    """
    # the matrix has axes 1 and 2
    other = 3 - dim
    if same_along(labels, other):
        return labels
    # heads come again for every entry of the batch
    matrices, which = labels.unique(dim=0, return_inverse=True)
    rows = [tracer.unify_places(matrix, dim - 1) for matrix in matrices]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return tracer.nodes.find(labels)
    # later matrices may have joined nodes of earlier ones
    unified = tracer.nodes.find(torch.stack(found))[which]
    return unified.unsqueeze(other).expand_as(labels)


def _scores(tracer: Tracer, name: str, left: Tensor, right: Tensor) -> Tensor | None:
    """left, right: (r, n), heads that repeat -> (r, 1, 1), one node a head behind n
    products.

    None where any entry is no neuron.
    """
    both = torch.cat([left, right], dim=1)
    if (both <= 0).any():
        return None
    heads, which = both.unique(dim=0, return_inverse=True)
    left, right = heads.chunk(2, dim=1)
    products = tracer.nodes.new(f"{name}.products", left.numel(), "product")
    edges_per_use(tracer, left.flatten(), products, "left")
    edges_per_use(tracer, right.flatten(), products, "right")
    nodes = tracer.nodes.new(f"{name}.heads", len(heads), "head", heads.T)
    summed = products.reshape(left.shape)
    tracer.edges(None, summed, nodes[:, None], "pool")
    return nodes[which][:, None, None]


def _weighted(
    tracer: Tracer, name: str, heads: Tensor, values: Tensor
) -> Tensor | None:
    """heads: (r,), values: (r, m) -> (r, 1, m), the products of each head with its
    values.

    None where any entry is no neuron.
    """
    both = torch.cat([heads[:, None], values], dim=1)
    if (both <= 0).any():
        return None
    rows, which = both.unique(dim=0, return_inverse=True)
    values = rows[:, 1:]
    heads = rows[:, :1].expand_as(values)
    factors = torch.stack([heads.flatten(), values.flatten()])
    products = tracer.nodes.new(name, values.numel(), "product", factors)
    tracer.edges(None, factors[0], products, "left")
    edges_per_use(tracer, factors[1], products, "right")
    labels = products.reshape(values.shape)[which]
    return labels[:, None]


def _pooled_products(
    tracer: Tracer, name: str, left: Tensor, right: Tensor
) -> Tensor | None:
    """(r, t, n) and (r, n, m): a node for every product, and one for each set that is
    summed.

    None where these are too many, or any entry is no neuron.
    """
    r, t, n = left.shape
    m = right.shape[2]
    # both factors of all products, (r, t, m, n); what only repeats is cut
    left = with_zero_strides(left)[:, :, None].expand(r, t, m, n)
    right = with_zero_strides(right).mT[:, None].expand(r, t, m, n)
    left, right = without_repeats([left, right])
    if left.numel() > MAX_ENTRIES or (left <= 0).any() or (right <= 0).any():
        return None
    pairs, which = unique_pairs(left.flatten(), right.flatten())
    if pairs.shape[1] > MAX_PRODUCTS:
        return None
    products = pair_nodes(tracer, f"{name}.products", pairs, "product")
    labels = products[which].reshape(left.shape)
    return _pooled(tracer, name, labels)


def _pooled(tracer: Tracer, name: str, labels: Tensor) -> Tensor:
    """A node for each set of products (r, t, m, n) that is summed over n, (r, t, m)."""
    # nothing is summed, or one product n times
    if labels.shape[3] == 1:
        return labels[..., 0]
    # a sum has no order: equal sets are one node
    rows, _ = labels.flatten(0, 2).sort(dim=1)
    sets, which = rows.unique(dim=0, return_inverse=True)
    nodes = tracer.nodes.new(name, len(sets), "pool", sets.T)
    tracer.edges(None, sets, nodes[:, None], "pool")
    return nodes[which].reshape(labels.shape[:3])


@register_rule(aten.add, aten.add_)
def addition(
    tracer: Tracer, call: Node, a: Value, b: Value, *, alpha: Any = 1
) -> Value:
    """A residual connection, a positional parameter, or a shift by a constant."""
    # b is scaled by alpha, so that the sides are no twins
    rule = sum_of if alpha == 1 else difference_of
    return binary_operation(tracer, call, a, b, rule, "shift")


@register_rule(aten.sub, aten.sub_)
def subtraction(tracer: Tracer, call: Node, a: Value, b: Value, **_: Any) -> Value:
    """As an addition, but the two sides are no twins."""
    return binary_operation(tracer, call, a, b, difference_of, "shift")


@register_rule(aten.mul, aten.mul_, aten.div, aten.div_)
def multiplication(tracer: Tracer, call: Node, a: Value, b: Value, **_: Any) -> Value:
    """A gate (a product of neurons), a scale (edges from one to one), or a constant
    factor."""
    is_norm = any(isinstance(x, Neurons) and x.is_normalised for x in (a, b))
    kind = "gamma" if is_norm else "scale"
    return binary_operation(tracer, call, a, b, product_of, kind)


@register_rule(aten.glu)
def gated_linear_unit(tracer: Tracer, call: Node, x: Value, dim: int = -1) -> Value:
    """a * sigmoid(b) of the two halves."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    a, b = x.labels.chunk(2, dim)
    return product_of(tracer, call, Neurons(a), Neurons(b))


def binary_operation(
    tracer: Tracer, call: Node, a: Value, b: Value, rule: Rule, kind: str
) -> Value:
    """A function of two tensors.

    rule: for two activations; else a parameter works on neurons, or a constant.
    """
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        return rule(tracer, call, a, b)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Neurons) and isinstance(other, Elements):
            return with_parameter(tracer, call, x, other, kind)
    return pointwise_function(tracer, call, (a, b), {})
