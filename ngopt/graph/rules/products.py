"""Activations with each other: sums, products and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.entrywise import elementwise, meet_constant
from ngopt.graph.rules.pairs import difference_of, product_of, sum_of, used_by
from ngopt.graph.rules.parameters import with_parameter
from ngopt.graph.rules.registry import Rule, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Applied, Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    folded,
    nodes_among,
    same_along,
    unique_pairs,
    without_repeats,
)

aten = torch.ops.aten

PRODUCTS = 4096
"""At most so many products in a matrix product that is no scores or values of an attention."""
ENTRIES = 1 << 20
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
    if not isinstance(q, Neurons) or not isinstance(k, Neurons) or not isinstance(v, Neurons):
        return tracer.unknown(call)
    if len(q.shape) > 2 and q.shape[-3] > k.shape[-3]:
        ratio = q.shape[-3] // k.shape[-3]
        k, v = (Neurons(x.labels.repeat_interleave(ratio, -3)) for x in (k, v))
    shape = torch.Size((*q.shape[:-1], k.shape[-2]))
    scores = product_sum(tracer, call.name, q, Neurons(k.labels.mT), shape)
    if isinstance(scores, Neurons):
        scores = _masked(tracer, call, scores, mask)
        tracer.applied.append(Applied(nodes_among(scores.labels), "softmax", None))
    return product_sum(tracer, f"{call.name}.values", scores, v, tracer.shape_of(call))


def _masked(tracer: Tracer, call: Node, scores: Neurons, mask: Value) -> Neurons:
    if isinstance(mask, Elements):
        return with_parameter(tracer, call, scores, mask, "shift")
    if isinstance(mask, Neurons):
        return sum_of(tracer, call, scores, mask)
    if isinstance(mask, Tensor):
        meet_constant(tracer, scores, mask)
    return scores


def product_sum(
    tracer: Tracer,
    name: str,
    a: Value,
    b: Value,
    shape: torch.Size,
) -> Value:
    """a @ b of two activations, (..., t, n) and (..., n, m).

    Where the summed index runs over neurons (q k^T), each pair of them is a product, and all
    products that are summed meet in one node, a head. Where it runs over positions (attention times
    values), the neurons of b are weighted by those of a, each pair again a product. What differs
    from position to position is joined if nothing keeps it apart, as the keys of a prefix and those
    of tokens.
    """
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        result = _of_activations(tracer, name, a.labels, b.labels)
        return Unknown(shape) if result is None else Neurons(result.reshape(shape))
    # what is no neurons mixes positions
    if isinstance(b, Neurons) and isinstance(a, (Tensor, Unknown)):
        labels, dim = b.labels, -2
    elif isinstance(a, Neurons) and isinstance(b, (Tensor, Unknown)):
        labels, dim = a.labels, -1
    else:
        return Unknown(shape)
    if not same_along(labels, dim):
        return Unknown(shape)
    return Neurons(labels.narrow(dim, 0, 1).expand(shape))


def _of_activations(tracer: Tracer, name: str, a: Tensor, b: Tensor) -> Tensor | None:
    """The product of labels (..., t, n) and (..., n, m); None where it is too large."""
    a = a[None] if a.dim() == 1 else a
    b = b[:, None] if b.dim() == 1 else b
    *lead_a, t, n = a.shape
    *lead_b, _, m = b.shape
    lead = torch.broadcast_shapes(tuple(lead_a), tuple(lead_b))
    left = tracer.nodes.find(a.expand(*lead, t, n)).reshape(-1, t, n)
    right = tracer.nodes.find(b.expand(*lead, n, m)).reshape(-1, n, m)
    shape = torch.Size((*lead, t, m))
    is_one_score = same_along(left, 1) and same_along(left, 2)
    weighs = is_one_score and not same_along(right, 2)
    right = _unify_positions(tracer, right, 2 if weighs else 1)
    if weighs and same_along(right, 1):
        return _weighted(tracer, name, left[:, 0, 0], right[:, 0], shape)
    if same_along(right, 2):
        left = _unify_positions(tracer, left, 2)
        if same_along(left, 1):
            keys = tracer.nodes.find(right[:, :, 0])
            return _scores(tracer, name, left[:, 0], keys, shape)
    return _pooled_products(tracer, name, left, tracer.nodes.find(right), shape)


def _unify_positions(tracer: Tracer, labels: Tensor, dim: int) -> Tensor:
    """Labels (r, n, m), the same at all positions of each (n, m) where nothing keeps them apart.

    dim: that of the neurons; positions are along the other.
    """
    other = 3 - dim
    if same_along(labels, other):
        return labels
    matrices, which = labels.unique(dim=0, return_inverse=True)
    rows = [tracer.unify_places(matrix, dim - 1) for matrix in matrices]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return tracer.nodes.find(labels)
    unified = tracer.nodes.find(torch.stack(found))[which]
    return unified.unsqueeze(other).expand_as(labels)


def _scores(
    tracer: Tracer,
    name: str,
    left: Tensor,
    right: Tensor,
    shape: torch.Size,
) -> Tensor | None:
    """left, right: (heads that repeat, n) -> one node a head, behind n products."""
    both = torch.cat([left, right], dim=1)
    if (both <= 0).any():
        return None
    heads, which = both.unique(dim=0, return_inverse=True)
    left, right = heads.chunk(2, dim=1)
    products = tracer.nodes.new(f"{name}.products", left.numel(), "product")
    used_by(tracer, left.flatten(), products, "left")
    used_by(tracer, right.flatten(), products, "right")
    nodes = tracer.nodes.new(f"{name}.heads", len(heads), "head", heads.T)
    tracer.edges(None, products.reshape(left.shape), nodes[:, None], "pool")
    return nodes[which].reshape(*shape[:-2], 1, 1).expand(shape)


def _weighted(
    tracer: Tracer,
    name: str,
    heads: Tensor,
    values: Tensor,
    shape: torch.Size,
) -> Tensor | None:
    """heads: (r,), values: (r, m) -> the products of each head with its values."""
    both = torch.cat([heads[:, None], values], dim=1)
    if (both <= 0).any():
        return None
    rows, which = both.unique(dim=0, return_inverse=True)
    heads, values = rows[:, :1].expand(-1, values.shape[1]), rows[:, 1:]
    factors = torch.stack([heads.flatten(), values.flatten()])
    products = tracer.nodes.new(name, values.numel(), "product", factors)
    tracer.edges(None, factors[0], products, "left")
    used_by(tracer, factors[1], products, "right")
    labels = products.reshape(values.shape)[which]
    return labels.reshape(*shape[:-2], 1, -1).expand(shape)


def _pooled_products(
    tracer: Tracer,
    name: str,
    left: Tensor,
    right: Tensor,
    shape: torch.Size,
) -> Tensor | None:
    """(r, t, n) and (r, n, m): a node for every product, and one for each set that is summed."""
    r, t, n = left.shape
    m = right.shape[2]
    left = folded(left)[:, :, None].expand(r, t, m, n)
    right = folded(right).mT[:, None].expand(r, t, m, n)
    left, right = without_repeats([left, right])
    if left.numel() > ENTRIES or (left <= 0).any() or (right <= 0).any():
        return None
    pairs, which = unique_pairs(left.flatten(), right.flatten())
    if pairs.shape[1] > PRODUCTS:
        return None
    products = tracer.nodes.new(f"{name}.products", pairs.shape[1], "product", pairs)
    tracer.edges(None, pairs[0], products, "left")
    tracer.edges(None, pairs[1], products, "right")
    labels = products[which].reshape(left.shape)
    if labels.shape[3] > 1:
        rows = labels.flatten(0, 2).sort(dim=1).values
        sets, which = rows.unique(dim=0, return_inverse=True)
        nodes = tracer.nodes.new(name, len(sets), "pool", sets.T)
        tracer.edges(None, sets, nodes[:, None], "pool")
        labels = nodes[which].reshape(labels.shape[:3])
    return labels.reshape(labels.shape[:3]).expand(r, t, m).reshape(shape)


@register_rule(aten.add, aten.add_)
def addition(
    tracer: Tracer,
    call: Node,
    a: Value,
    b: Value,
    *,
    alpha: Any = 1,
) -> Value:
    """A residual connection, a positional parameter, or a shift by a constant."""
    return with_other(tracer, call, a, b, sum_of if alpha == 1 else difference_of, "shift")


@register_rule(aten.sub, aten.sub_)
def subtraction(
    tracer: Tracer,
    call: Node,
    a: Value,
    b: Value,
    **_: Any,
) -> Value:
    """As an addition, but the two sides are no twins."""
    return with_other(tracer, call, a, b, difference_of, "shift")


@register_rule(aten.mul, aten.mul_, aten.div, aten.div_)
def multiplication(
    tracer: Tracer,
    call: Node,
    a: Value,
    b: Value,
    **_: Any,
) -> Value:
    """A gate (a product of neurons), a scale (edges from one to one), or a constant factor."""
    is_norm = any(isinstance(x, Neurons) and x.is_normalised for x in (a, b))
    return with_other(tracer, call, a, b, product_of, "gamma" if is_norm else "scale")


@register_rule(aten.glu)
def gated_linear_unit(tracer: Tracer, call: Node, x: Value, dim: int = -1) -> Value:
    """a * sigmoid(b) of the two halves."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    a, b = x.labels.chunk(2, dim)
    return product_of(tracer, call, Neurons(a), Neurons(b))


def with_other(
    tracer: Tracer,
    call: Node,
    a: Value,
    b: Value,
    rule: Rule,
    kind: str,
) -> Value:
    """A function of two tensors.

    rule: for two activations; else a parameter works on neurons, or a constant.
    """
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        return rule(tracer, call, a, b)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Neurons) and isinstance(other, Elements):
            return with_parameter(tracer, call, x, other, kind)
    return elementwise(tracer, call, (a, b), {})
