"""Values in the forms that rules need: as neurons, as labels, transposed."""

from collections.abc import Callable

import torch
from torch import Tensor

from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    NO_NEURON,
    Elements,
    Neurons,
    Value,
    constant_labels,
)


def as_neurons(tracer: Tracer, value: Value) -> Neurons:
    """Neurons for a parameter that is used as an activation, such as a class token.

    Its elements become features of new nodes. Constants are no neurons.
    """
    if isinstance(value, Neurons):
        return value
    if not isinstance(value, Elements):
        return Neurons(torch.full(tuple(value.shape), NO_NEURON))
    # an element that is expanded over a batch or over tokens is one node
    numbers, which = value.numbers.unique(return_inverse=True)
    name = tracer.parameters[value.parameter].name
    count = len(numbers)
    # made of no nodes: learned entries of several positions may be unified later
    made_of = numbers.new_empty(0, count)
    nodes = tracer.nodes.new(name, count, made_of=made_of, mark=Mark.LEARNED)
    tracer.edges(Elements(value.parameter, numbers), None, nodes, "value")
    return Neurons(nodes[which])


def labels_of(tracer: Tracer, value: Value) -> Tensor:
    """Labels of any value whose entries are known."""
    if isinstance(value, Tensor):
        return constant_labels(value)
    return as_neurons(tracer, value).labels


def rearranged(value: Value, function: Callable[[Tensor], Tensor]) -> Value:
    """A value after a function that only rearranges entries."""
    if isinstance(value, Neurons):
        # W x is a transposed x^T W^T, so that it stays the output of a weight
        return Neurons(function(value.labels), is_pristine=value.is_pristine)
    if isinstance(value, Tensor):
        return function(value)
    return value.apply(function)


def transposed(value: Value) -> Value:
    """The last two dimensions exchanged."""
    return rearranged(value, lambda x: x.mT)


def is_whole(tracer: Tracer, x: Value) -> bool:
    """Whether a value is a parameter in its own shape."""
    if not isinstance(x, Elements):
        return False
    return tuple(x.shape) == tracer.parameters[x.parameter].shape
