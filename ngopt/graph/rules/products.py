"""Activations with each other: sums, products and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.edges import diagonal, edges_between, fan_out
from ngopt.graph.rules.entrywise import elementwise, meet_constant
from ngopt.graph.rules.pairs import difference_of, product_of, sum_of
from ngopt.graph.rules.parameters import with_parameter
from ngopt.graph.rules.registry import Rule, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    folded,
    nodes_among,
    unique_pairs,
    without_repeats,
)

aten = torch.ops.aten

PRODUCTS = 4096
"""At most so many products in one matrix product of activations that is neither scores nor values of an attention."""
ENTRIES = 1 << 20
"""At most so many different entries of that product are looked at."""


@register_rule(aten.scaled_dot_product_attention)
def attention(
    tracer: Tracer, node: Node, q: Value, k: Value, v: Value, mask: Value = None, *_: Any, **__: Any
) -> Value:
    """softmax(q k^T + mask) v with heads kept apart; grouped-query heads are repeated."""
    if not (isinstance(q, Neurons) and isinstance(k, Neurons) and isinstance(v, Neurons)):
        return tracer.unknown(node)
    ratio = q.shape[-3] // k.shape[-3] if len(q.shape) > 2 and q.shape[-3] != k.shape[-3] else 1
    if ratio > 1:
        k, v = (Neurons(x.labels.repeat_interleave(ratio, -3)) for x in (k, v))
    scores_shape = torch.Size((*q.shape[:-1], k.shape[-2]))
    scores = product_sum(tracer, node.name, q, Neurons(k.labels.mT), scores_shape)
    if isinstance(mask, Elements) and isinstance(scores, Neurons):
        scores = with_parameter(tracer, node, scores, mask, "shift")
    elif isinstance(mask, Neurons) and isinstance(scores, Neurons):
        scores = sum_of(tracer, node, scores, mask)
    elif isinstance(mask, Tensor) and isinstance(scores, Neurons):
        meet_constant(tracer, scores, mask)
    if isinstance(scores, Neurons):
        tracer.activations.append((nodes_among(scores.labels), "softmax"))
    return product_sum(tracer, f"{node.name}.values", scores, v, tracer.shape_of(node))


def product_sum(tracer: Tracer, name: str, a: Value, b: Value, shape: torch.Size) -> Value:
    """a @ b of two activations, (..., t, n) and (..., n, m).

    Where the summed index runs over neurons (q k^T), each pair of them is a product, and all
    products that are summed meet in one node, a head. Where it runs over positions (attention times
    values), the neurons of b are weighted by those of a, each pair again a product. What differs from
    position to position is joined if nothing keeps it apart, as the keys of a prefix and those of tokens.
    """
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        result = _of_activations(tracer, name, a.labels, b.labels)
        return Neurons(result.labels.reshape(shape)) if isinstance(result, Neurons) else Unknown(shape)
    # a constant mixes positions
    if isinstance(a, (Tensor, Unknown)) and isinstance(b, Neurons) and (b.labels == b.labels[..., :1, :]).all():
        return Neurons(b.labels[..., :1, :].expand(*b.labels.shape[:-2], *shape[-2:]).expand(shape))
    if isinstance(b, (Tensor, Unknown)) and isinstance(a, Neurons) and (a.labels == a.labels[..., :1]).all():
        return Neurons(a.labels[..., :1].expand(shape))
    return Unknown(shape)


def _of_activations(tracer: Tracer, name: str, a: Tensor, b: Tensor) -> Value:
    """The product of labels (..., t, n) and (..., n, m)."""
    a, b = a[None] if a.dim() == 1 else a, b[:, None] if b.dim() == 1 else b
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = (tracer.nodes.find(x.expand(*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (a, b))
    shape = torch.Size((*lead, left.shape[1], right.shape[2]))
    weighs = bool((left == left[:, :1, :1]).all()) and not (right == right[:, :, :1]).all()
    right = _joined(tracer, right, 2 if weighs else 1)
    if weighs and (right == right[:, :1]).all():
        return _weighted(tracer, name, left[:, 0, 0], right[:, 0], shape)
    if (right == right[:, :, :1]).all():
        left = _joined(tracer, left, 2)
        if (left == left[:, :1]).all():
            return _scores(tracer, name, left[:, 0], tracer.nodes.find(right[:, :, 0]), shape)
    return _pooled_products(tracer, name, left, tracer.nodes.find(right), shape)


def _joined(tracer: Tracer, labels: Tensor, dim: int) -> Tensor:
    """Labels (r, n, m), along a dimension the same at all positions of each (n, m) where nothing keeps them apart."""
    if (labels == labels.narrow(3 - dim, 0, 1)).all():
        return labels
    matrices, which = labels.unique(dim=0, return_inverse=True)
    rows = [tracer.vector(matrix, dim - 1) for matrix in matrices]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return tracer.nodes.find(labels)
    return tracer.nodes.find(torch.stack(found))[which].unsqueeze(3 - dim).expand_as(labels)


def _scores(tracer: Tracer, name: str, left: Tensor, right: Tensor, shape: torch.Size) -> Value:
    """left, right: (heads that repeat, n) -> one node a head, behind n products."""
    n = left.shape[1]
    if (left < 0).any() or (right < 0).any():
        return Unknown(shape)
    heads, which = torch.cat([left, right], dim=1).unique(dim=0, return_inverse=True)
    products = tracer.nodes.new(f"{name}.products", len(heads) * n, "product")
    diagonal(tracer, heads[:, :n].flatten(), products, "left")
    diagonal(tracer, heads[:, n:].flatten(), products, "right")
    nodes = tracer.nodes.new(f"{name}.heads", len(heads), "head", heads.T)
    tracer.add_block(None, products, nodes, (len(heads), 1, n), kind="pool")
    return Neurons(nodes[which].reshape(*shape[:-2], 1, 1).expand(shape))


def _weighted(tracer: Tracer, name: str, heads: Tensor, values: Tensor, shape: torch.Size) -> Value:
    """heads: (r,), values: (r, m) -> the products of each head with its values."""
    if (heads < 0).any() or (values < 0).any():
        return Unknown(shape)
    rows, which = torch.cat([heads[:, None], values], dim=1).unique(dim=0, return_inverse=True)
    m = values.shape[1]
    factors = torch.stack([rows[:, :1].expand(-1, m).flatten(), rows[:, 1:].flatten()])
    products = tracer.nodes.new(name, len(rows) * m, "product", factors)
    fan_out(tracer, rows[:, 0], products, m, "left")
    diagonal(tracer, rows[:, 1:].flatten(), products, "right")
    labels = products.reshape(len(rows), m)[which]
    return Neurons(labels.reshape(*shape[:-2], 1, m).expand(shape))


def _pooled_products(tracer: Tracer, name: str, left: Tensor, right: Tensor, shape: torch.Size) -> Value:
    """(r, t, n) and (r, n, m): a node for every product, and one for each different set of these that is summed."""
    size = (*left.shape, right.shape[2])
    left, right = folded(left)[..., None].expand(size), folded(right)[:, None].expand(size)
    left, right = (x.movedim(2, -1) for x in without_repeats([left, right]))  # (r, t, m, n)
    if left.numel() > ENTRIES or (left < 0).any() or (right < 0).any():
        return Unknown(shape)
    pairs, which = unique_pairs(left.flatten(), right.flatten())
    if pairs.shape[1] > PRODUCTS:
        return Unknown(shape)
    products = tracer.nodes.new(f"{name}.products", pairs.shape[1], "product", pairs)
    edges_between(tracer, pairs[0], products, "left")
    edges_between(tracer, pairs[1], products, "right")
    labels = products[which].reshape(left.shape)
    if labels.shape[-1] > 1:
        sets, which = labels.flatten(0, -2).sort(dim=1).values.unique(dim=0, return_inverse=True)
        nodes = tracer.nodes.new(name, len(sets), "pool", sets.T)
        apart = sets.unique().numel() == sets.numel()
        for members, node in [(sets, nodes)] if apart else zip(sets, nodes.split(1), strict=True):
            tracer.add_block(None, members.flatten(), node, (len(node), 1, sets.shape[1]), kind="pool")
        labels = nodes[which].reshape(labels.shape[:-1])
    return Neurons(labels.reshape(labels.shape[:3]).expand(size[0], size[1], size[3]).reshape(shape))


@register_rule(aten.add, aten.add_)
def addition(tracer: Tracer, node: Node, a: Value, b: Value, *, alpha: Any = 1) -> Value:
    """A residual connection, a positional parameter, or a shift by a constant."""
    return with_other(tracer, node, a, b, sum_of if alpha == 1 else difference_of, "shift")


@register_rule(aten.sub, aten.sub_)
def subtraction(tracer: Tracer, node: Node, a: Value, b: Value, **_: Any) -> Value:
    """As an addition, but neurons that are subtracted are no twins of those that they are subtracted from."""
    return with_other(tracer, node, a, b, difference_of, "shift")


@register_rule(aten.mul, aten.mul_, aten.div, aten.div_)
def multiplication(tracer: Tracer, node: Node, a: Value, b: Value, **_: Any) -> Value:
    """A gate (a product of neurons), a scale (diagonal edges), or a constant factor."""
    is_norm = not tracer.normalised.isdisjoint(node.all_input_nodes)
    return with_other(tracer, node, a, b, product_of, "gamma" if is_norm else "scale")


@register_rule(aten.glu)
def gated_linear_unit(tracer: Tracer, node: Node, x: Value, dim: int = -1) -> Value:
    """a * sigmoid(b) of the two halves."""
    if not isinstance(x, Neurons):
        return tracer.unknown(node)
    a, b = x.labels.chunk(2, dim)
    return product_of(tracer, node, Neurons(a), Neurons(b))


def with_other(tracer: Tracer, node: Node, a: Value, b: Value, rule: Rule, kind: str) -> Value:
    """A function of two tensors: `rule` for two activations, else a parameter that works on neurons, or a constant."""
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        return rule(tracer, node, a, b)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Neurons) and isinstance(other, Elements):
            return with_parameter(tracer, node, x, other, kind)
    return elementwise(tracer, node, (a, b), {})
