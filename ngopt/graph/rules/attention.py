"""Matrix products of two activations, among them scores and values of an attention."""

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.bare_parameters import with_parameter
from ngopt.graph.rules.constants import tell_apart_by_constant
from ngopt.graph.rules.neuron_pairs import edges_per_use, pair_nodes, sum_of
from ngopt.graph.rules.registry import aten, register_layer_rule
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

MAX_PRODUCTS = 4096
"""Of a matrix product that is neither scores nor values of an attention."""
MAX_ENTRIES = 1 << 20
"""Of that matrix product, different ones; larger products are not searched."""


@register_layer_rule(
    aten.scaled_dot_product_attention, aten._scaled_dot_product_flash_attention_for_cpu
)
def attention(
    tracer: Tracer, call: Node, q: Value, k: Value, v: Value, *_, **__
) -> Value:
    """softmax(q k^T + mask) v with separate heads; grouped-query heads are repeated."""
    if not isinstance(q, Neurons) or not isinstance(k, Neurons):
        return tracer.unknown(call)
    if not isinstance(v, Neurons):
        return tracer.unknown(call)
    # dropout, is_causal and scale are ignored: they are the same for all neurons
    k, v = _repeated(k, q), _repeated(v, q)
    keys = Neurons(k.labels.mT)
    shape = torch.Size((*q.shape[:-1], keys.shape[-1]))
    scores = product_of_activations(tracer, call.name, q, keys, shape)
    if isinstance(scores, Neurons):
        mask = tracer.argument(call, "attn_mask")
        if isinstance(mask, Elements):
            scores = with_parameter(tracer, call, scores, mask, "shift")
        elif isinstance(mask, Neurons):
            scores = sum_of(tracer, call, scores, mask)
        elif isinstance(mask, Tensor):
            tell_apart_by_constant(tracer, scores, mask)
        # function None: all heads have the same
        softmax = AppliedFunction(nodes_among(scores.labels), "softmax", None)
        tracer.applied_functions.append(softmax)
    name = f"{call.name}.values"
    shape = torch.Size((*q.shape[:-1], v.shape[-1]))
    return product_of_activations(tracer, name, scores, v, shape)


def _repeated(x: Neurons, q: Neurons) -> Neurons:
    """Keys or values (..., heads, n, d), a head for each of the queries."""
    if len(q.shape) < 3 or q.shape[-3] <= x.shape[-3]:
        return x
    # as in torch, consecutive heads of queries share a head of keys
    return Neurons(x.labels.repeat_interleave(q.shape[-3] // x.shape[-3], -3))


def product_of_activations(
    tracer: Tracer, name: str, a: Value, b: Value, shape: torch.Size
) -> Value:
    """a @ b of two activations, (..., t, n) and (..., n, m); Unknown if too large.

    If the sum runs over neurons (q k^T), each pair of them is a product node, and all
    products of a sum have edges to one node, a head. If it runs over positions
    (attention times values), the neurons of b are weighted by those of a, each pair
    again a product node. Neurons that differ between positions are unified if possible,
    such as the keys of a prefix and those of tokens.
    """
    if isinstance(a, Neurons) and isinstance(b, (Tensor, Unknown)):
        return same_neurons(a, -1, shape)
    if isinstance(b, Neurons) and isinstance(a, (Tensor, Unknown)):
        # a vector is a column
        return same_neurons(b, max(-2, -len(b.shape)), shape)
    if not isinstance(a, Neurons) or not isinstance(b, Neurons):
        return Unknown(shape)
    # as in torch, a vector is a row on the left and a column on the right
    left = a.labels[None] if a.labels.dim() == 1 else a.labels
    right = b.labels[:, None] if b.labels.dim() == 1 else b.labels
    # (1,): two plain matrices get an axis that can be flattened, too
    lead = torch.broadcast_shapes((1,), left.shape[:-2], right.shape[:-2])
    # (r, t, n) and (r, n, m)
    left = tracer.nodes.find(left.expand(*lead, -1, -1)).flatten(0, -3)
    right = tracer.nodes.find(right.expand(*lead, -1, -1)).flatten(0, -3)
    labels = _products(tracer, name, left, right)
    if labels is None:
        tracer.pin(left)
        # many positions are mixed, by numbers that the graph does not contain
        return same_neurons(b, max(-2, -len(b.shape)), shape)
    r, t, _ = left.shape
    return Neurons(labels.expand(r, t, right.shape[2]).reshape(shape))


def same_neurons(
    x: Neurons, dim: int, shape: torch.Size, positions: Tensor | None = None
) -> Value:
    """Behind a function that mixes positions along a dimension: neurons stay if they
    are the same at all of these."""
    if not same_along(x.labels, dim):
        return Unknown(shape)
    return Neurons(x.labels.narrow(dim, 0, 1).expand(shape), positions=positions)


def _products(tracer: Tracer, name: str, left: Tensor, right: Tensor) -> Tensor | None:
    """Labels that broadcast to (r, t, m), of labels (r, t, n) and (r, n, m). None if
    there are too many products, or any entry is no neuron."""
    # one node in each matrix, as a head at all positions
    are_scores = same_along(left, 1) and same_along(left, 2)
    # heads of one neuron each have the same value at all positions
    is_value = right.shape[1] > 1 and same_along(right, 1)
    weighs = are_scores and (is_value or not same_along(right, 2))
    # neurons of values are along m, those of keys along n
    right = _unify_positions(tracer, right, 2 if weighs else 1)
    if weighs and same_along(right, 1):
        return _weighted_values(tracer, name, left[:, 0, :1], right[:, 0])
    if same_along(right, 2):
        left = _unify_positions(tracer, left, 2)
        right = tracer.nodes.find(right)
        if same_along(left, 1):
            return _scores(tracer, name, left[:, 0], right[:, :, 0])
    return _pooled_products(tracer, name, left, right)


def _unify_positions(tracer: Tracer, labels: Tensor, dim: int) -> Tensor:
    """Labels (r, n, m), the same at all positions of each matrix where possible.

    dim: that of the neurons, 1 or 2; positions are along the other.
    """
    other = 3 - dim
    if same_along(labels, other):
        return labels
    # heads repeat for every entry of the batch
    matrices, which = labels.unique(dim=0, return_inverse=True)
    # all of them, even if one cannot be unified
    rows = [tracer.unify_places(matrix, dim - 1) for matrix in matrices]
    known = [row for row in rows if row is not None]
    if len(known) < len(matrices):
        return tracer.nodes.find(labels)
    # later matrices may have unified nodes of earlier ones
    unified = tracer.nodes.find(torch.stack(known))[which]
    return unified.unsqueeze(other).expand_as(labels)


def _scores(tracer: Tracer, name: str, left: Tensor, right: Tensor) -> Tensor | None:
    """Heads (r, 1, 1), each one node behind n products, of left and right (r, n). None
    if any entry is no neuron."""
    factors = torch.cat([left, right], dim=1)
    if (factors <= 0).any():
        return None
    heads, which = factors.unique(dim=0, return_inverse=True)
    left, right = heads.chunk(2, dim=1)
    products = tracer.nodes.new(f"{name}.products", left.numel(), "product")
    edges_per_use(tracer, left.flatten(), products, "left")
    edges_per_use(tracer, right.flatten(), products, "right")
    nodes = tracer.nodes.new(f"{name}.heads", len(heads), "head", heads.T)
    tracer.edges(None, products.reshape(left.shape), nodes[:, None], "pool")
    return nodes[which][:, None, None]


def _weighted_values(
    tracer: Tracer, name: str, heads: Tensor, values: Tensor
) -> Tensor | None:
    """The products (r, 1, m) of heads (r, 1) with their values (r, m). None if any
    entry is no neuron."""
    pairs = torch.cat([heads, values], dim=1)
    if (pairs <= 0).any():
        return None
    rows, which = pairs.unique(dim=0, return_inverse=True)
    values = rows[:, 1:]
    heads = rows[:, :1].expand_as(values)
    factors = torch.stack([heads.flatten(), values.flatten()])
    products = tracer.nodes.new(name, values.numel(), "product", factors)
    tracer.edges(None, factors[0], products, "left")
    edges_per_use(tracer, factors[1], products, "right")
    return products.reshape(values.shape)[which][:, None]


def _pooled_products(
    tracer: Tracer, name: str, left: Tensor, right: Tensor
) -> Tensor | None:
    """A node for every product of (r, t, n) and (r, n, m), and one for each sum. None
    if there are too many products, or any entry is no neuron."""
    r, t, n = left.shape
    m = right.shape[2]
    # both factors of all products, (r, t, m, n), of length 1 where both repeat
    left = with_zero_strides(left)[:, :, None].expand(r, t, m, n)
    right = with_zero_strides(right).mT[:, None].expand(r, t, m, n)
    left, right = without_repeats([left, right])
    if left.numel() > MAX_ENTRIES or (left <= 0).any() or (right <= 0).any():
        return None
    pairs, which = unique_pairs(left.flatten(), right.flatten())
    if pairs.shape[1] > MAX_PRODUCTS:
        return None
    products = pair_nodes(tracer, f"{name}.products", pairs, "product")
    return _sums(tracer, name, products[which].reshape(left.shape))


def _sums(tracer: Tracer, name: str, products: Tensor) -> Tensor:
    """A node (r, t, m) for each set of products (r, t, m, n) that is summed over n."""
    # no sum, or of one product n times
    if products.shape[3] == 1:
        return products[..., 0]
    # a sum has no order: equal sets are one node
    rows, _ = products.flatten(0, 2).sort(dim=1)
    sets, which = rows.unique(dim=0, return_inverse=True)
    nodes = tracer.nodes.new(name, len(sets), "pool", sets.T)
    tracer.edges(None, sets, nodes[:, None], "pool")
    return nodes[which].reshape(products.shape[:3])
