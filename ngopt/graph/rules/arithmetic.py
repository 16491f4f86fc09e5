"""add, sub, mul, div and glu: of two activations, or of one and a parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ngopt.graph.rules.bare_parameters import with_parameter
from ngopt.graph.rules.neuron_pairs import difference_of, product_of, sum_of
from ngopt.graph.rules.pointwise import pointwise_function
from ngopt.graph.rules.registry import Rule, register_rule
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Elements, Neurons, Value

aten = torch.ops.aten


@register_rule(aten.add, aten.add_)
def addition(
    tracer: Tracer, call: Node, a: Value, b: Value, *, alpha: Any = 1
) -> Value:
    """A residual connection, a positional parameter, or a shift by a constant."""
    # alpha scales b alone, so that a and b cannot be exchanged
    rule = sum_of if alpha == 1 else difference_of
    return _binary_function(tracer, call, (a, b), rule, "shift")


@register_rule(aten.sub, aten.sub_)
def subtraction(tracer: Tracer, call: Node, a: Value, b: Value, **_) -> Value:
    return _binary_function(tracer, call, (a, b), difference_of, "shift")


@register_rule(aten.mul, aten.mul_, aten.div, aten.div_)
def multiplication(tracer: Tracer, call: Node, a: Value, b: Value, **_) -> Value:
    """A gate (a product of neurons), a scale (edges from one to one), or a constant
    factor."""
    follows_norm = False
    for operand in (a, b):
        if isinstance(operand, Neurons) and operand.is_normalised:
            follows_norm = True
    kind = "gamma" if follows_norm else "scale"
    return _binary_function(tracer, call, (a, b), product_of, kind)


@register_rule(aten.glu)
def gated_linear_unit(tracer: Tracer, call: Node, x: Value, dim: int = -1) -> Value:
    """a * sigmoid(b) of the two halves of x."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    a, b = x.labels.chunk(2, dim)
    return product_of(tracer, call, Neurons(a), Neurons(b))


def _binary_function(
    tracer: Tracer, call: Node, operands: tuple[Value, Value], rule: Rule, kind: str
) -> Value:
    """rule: for two activations. kind: of the edges of a parameter."""
    a, b = operands
    if isinstance(a, Neurons) and isinstance(b, Neurons):
        return rule(tracer, call, a, b)
    if isinstance(a, Neurons) and isinstance(b, Elements):
        return with_parameter(tracer, call, a, b, kind)
    if isinstance(b, Neurons) and isinstance(a, Elements):
        return with_parameter(tracer, call, b, a, kind)
    return pointwise_function(tracer, call, operands, {})
