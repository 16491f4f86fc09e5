"""Einstein sums of two tensors, as matrix products."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from re import fullmatch

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.rules.conversions import rearranged, transposed
from ngopt.graph.rules.linear import matmul
from ngopt.graph.rules.registry import aten, register_layer_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Unknown, Value


@register_layer_rule(aten.einsum)
def einsum(
    tracer: Tracer, call: Node, equation: str, operands: Sequence[Value], *_, **__
) -> Value:
    """Indices of both tensors and the result are a batch; indices of both tensors alone
    are summed."""
    unknown = Unknown(tracer.shape_of(call))
    indices = _indices(equation)
    if indices is None:
        return unknown
    a, b, output = indices
    x, y = operands
    # matmul takes a weight with a batch of its own on the right alone
    if isinstance(x, Elements) and not isinstance(y, Elements):
        a, b = b, a
        x, y = y, x
    sizes = _sizes(a + b, (*x.shape, *y.shape))
    left = _without(output, b)
    right = _without(output, a)
    batch = _without(output, left + right)
    summed = _without(a, output)
    x = _arranged(x, a, sizes, (batch, left, summed))
    y = _arranged(y, b, sizes, (batch, right, summed))
    # one axis for all indices of each part
    shape = torch.Size((*x.shape[:-1], y.shape[-2]))
    product = matmul(tracer, call, x, transposed(y), shape)
    if not isinstance(product, Neurons):
        return unknown
    order = batch + left + right
    labels = product.labels.reshape(_lengths(order, sizes))
    labels = labels.permute(_places(output, order))
    return replace(product, labels=labels)


def _indices(equation: str) -> tuple[str, str, str] | None:
    """Those of two tensors and of their result; None if it is no matrix product."""
    # other numbers of operands, '...' and a missing output do not match
    plain = fullmatch(r"(\w*),(\w*)->(\w*)", equation.replace(" ", ""))
    if plain is None:
        return None
    a, b, output = plain.groups()
    a_set, b_set = set(a), set(b)
    is_diagonal = len(a_set) < len(a) or len(b_set) < len(b)
    # sums of one operand alone would have to come first
    summed_alone = (a_set ^ b_set) - set(output)
    if is_diagonal or summed_alone:
        return None
    return a, b, output


def _sizes(names: str, lengths: Sequence[int]) -> dict[str, int]:
    """The length of every index; a length of 1 is broadcast."""
    sizes = dict.fromkeys(names, 1)
    for name, length in zip(names, lengths, strict=True):
        if length != 1:
            sizes[name] = length
    return sizes


def _without(names: str, others: str) -> str:
    for name in others:
        names = names.replace(name, "")
    return names


def _lengths(names: str, sizes: Mapping[str, int]) -> list[int]:
    return [sizes[name] for name in names]


def _places(names: str, order: str) -> list[int]:
    return list(map(order.index, names))


def _arranged(
    value: Value, names: str, sizes: Mapping[str, int], parts: tuple[str, str, str]
) -> Value:
    """A tensor (*batch, rows, columns).

    parts: the indices of the batch, of rows (kept) and of columns (summed).
    """
    batch, kept, summed = parts
    rows, columns = prod(_lengths(kept, sizes)), prod(_lengths(summed, sizes))
    shape = (*_lengths(batch, sizes), rows, columns)
    order = _places(batch + kept + summed, names)

    def arranged(x: Tensor) -> Tensor:
        return x.expand(_lengths(names, sizes)).permute(order).reshape(shape)

    return rearranged(value, arranged)
