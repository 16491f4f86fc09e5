"""Einstein sums of two tensors, as matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch.fx import Node

from ngopt.graph.rules.entries import transposed
from ngopt.graph.rules.layers import matmul
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Unknown, Value

aten = torch.ops.aten


@register_rule(aten.einsum)
def einsum(
    tracer: Tracer,
    call: Node,
    equation: str,
    operands: Sequence[Value],
    *_: Any,
    **__: Any,
) -> Value:
    """Indices in both tensors and the result are a batch, those in both alone are summed.

    The others are kept.
    """
    unknown = Unknown(tracer.shape_of(call))
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    is_plain = arrow and "." not in equation and len(names) == 2
    if not is_plain or any(len(set(name)) < len(name) for name in names):
        return unknown
    if isinstance(operands[0], Elements) and not isinstance(operands[1], Elements):
        names, operands = names[::-1], operands[::-1]
    a, b = names
    batch = [n for n in output if n in a and n in b]
    left = [n for n in output if n in a and n not in b]
    right = [n for n in output if n in b and n not in a]
    summed = [n for n in a if n in b and n not in output]
    if {*batch, *left, *summed} != set(a) or {*batch, *right, *summed} != set(b):
        return unknown
    x = _arranged(operands[0], a, batch, left, summed)
    y = _arranged(operands[1], b, batch, right, summed)
    shape = torch.Size((*x.shape[:-1], y.shape[-2]))
    product = matmul(tracer, call, x, transposed(y), shape)
    if not isinstance(product, Neurons):
        return unknown
    order = [*batch, *left, *right]
    sizes = dict(zip(a, operands[0].shape, strict=True))
    sizes |= dict(zip(b, operands[1].shape, strict=True))
    apart = product.labels.reshape([sizes[n] for n in order])
    labels = apart.permute([order.index(n) for n in output])
    return replace(product, labels=labels)


def _arranged(value: Value, names: str, *parts: list[str]) -> Value:
    """A tensor of which each part of the indices is one dimension, but those of the first."""
    dims = [names.index(n) for part in parts for n in part]
    sizes = [[value.shape[names.index(n)] for n in part] for part in parts]
    batch, *others = sizes
    shape = torch.Size((*batch, *map(prod, others)))
    if isinstance(value, Neurons):
        return Neurons(value.labels.permute(dims).reshape(shape))
    if isinstance(value, Elements):
        return value.apply(lambda x: x.permute(dims).reshape(shape))
    if isinstance(value, torch.Tensor):
        return value.permute(dims).reshape(shape)
    return Unknown(shape)
