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
    tracer: Tracer, call: Node, equation: str, operands: Sequence[Value], *_: Any, **__: Any
) -> Value:
    """Indices in both tensors and the result are a batch, those in both alone are summed.

    The others are kept.
    """
    unknown = Unknown(tracer.shape_of(call))
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    if not arrow or "." in equation or len(names) != 2:
        return unknown
    if any(len(set(name)) < len(name) for name in names):
        return unknown
    if isinstance(operands[0], Elements) and not isinstance(operands[1], Elements):
        names, operands = names[::-1], operands[::-1]
    a, b = names
    batch = [n for n in output if n in a and n in b]
    left = [n for n in output if n in a and n not in b]
    right = [n for n in output if n in b and n not in a]
    summed = [n for n in a if n in b and n not in output]
    if len(batch) + len(left) + len(summed) != len(a):
        return unknown
    if len(batch) + len(right) + len(summed) != len(b):
        return unknown
    size = dict(zip(a, operands[0].shape, strict=True)) | dict(
        zip(b, operands[1].shape, strict=True)
    )
    lead, rows, inner, columns = ([size[n] for n in part] for part in (batch, left, summed, right))
    x = _arranged(operands[0], a, [*batch, *left, *summed], (*lead, prod(rows), prod(inner)))
    y = _arranged(operands[1], b, [*batch, *right, *summed], (*lead, prod(columns), prod(inner)))
    shape = torch.Size((*lead, prod(rows), prod(columns)))
    product = matmul(tracer, call, x, transposed(y), shape)
    if not isinstance(product, Neurons):
        return unknown
    order = [*batch, *left, *right]
    apart = product.labels.reshape(*lead, *rows, *columns)
    return replace(product, labels=apart.permute([order.index(n) for n in output]))


def _arranged(value: Value, names: str, order: list[str], shape: tuple[int, ...]) -> Value:
    dims = [names.index(n) for n in order]
    if isinstance(value, Neurons):
        return Neurons(value.labels.permute(dims).reshape(shape))
    if isinstance(value, Elements):
        return value.move(lambda v: v.permute(dims).reshape(shape), (value,), {})
    if isinstance(value, torch.Tensor):
        return value.permute(dims).reshape(shape)
    return Unknown(torch.Size(shape))
