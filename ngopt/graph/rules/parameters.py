"""Bare parameters that are added to activations or multiplied with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.rules.edges import edges_between
from ngopt.graph.rules.entries import elementwise
from ngopt.graph.rules.registry import register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.values import (
    Neurons,
    Value,
    exchanged,
    unique_pairs,
    without_repeats,
)

if TYPE_CHECKING:
    from ngopt.graph.tracing.tracer import Tracer

aten = torch.ops.aten


def with_parameter(tracer: Tracer, node: Node, x: Neurons, elements: Elements, kind: str) -> Value:
    """A parameter that is added to neurons or multiplied with them, entry by entry.

    Where each neuron has elements of its own, a scale is diagonal edges to new nodes and anything
    else a feature of the neuron; elements at different positions are slots. Elements that several
    neurons share belong to a node of their own, with edges of value 1 to those.
    """
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    x = _widened(tracer, node, x, elements, shape)
    whole, numbers = without_repeats([x.labels.expand(shape), elements.numbers.expand(shape)])
    labels = tracer.nodes.find(whole)
    pairs = _pairs(labels, numbers)
    if _uneven(pairs) and tracer.vector(whole, -1) is not None:  # tokens that are the same neurons after all
        labels = tracer.nodes.find(whole)
        pairs = _pairs(labels, numbers)
    result = Neurons(labels.expand(shape))
    if not pairs.numel() or _uneven(pairs):
        return result
    nodes = pairs[0].unique_consecutive()
    table = pairs[1].reshape(len(nodes), -1)  # (neurons, elements of each)
    sets, owner = table.unique(dim=0, return_inverse=True)
    slots = sets[:, 0] if sets.shape[1] == 1 else sets
    own = Elements(elements.parameter, slots)
    view = own.view()
    if view is None or sets.unique().numel() != sets.numel():
        return result
    name = f"{tracer.parameters[elements.parameter].name}"
    if len(sets) == len(nodes):
        nodes = nodes[owner.argsort()]
        if kind != "scale":
            tracer.add_bias(own, nodes, kind)
            return result
        targets = tracer.nodes.new(name, len(nodes), made_of=nodes[None])
        slot_shape = view.shape[1:]
        wide = View(
            view.parameter, (len(nodes), 1, 1, *slot_shape), (view.strides[0], 0, 0, *view.strides[1:]), view.offset
        )
        tracer.add_block(wide, nodes, targets, (len(nodes), 1, 1), slot_shape, kind)
        return Neurons(exchanged(labels, nodes, targets).expand(shape))
    shared = tracer.nodes.new(name, len(sets), "parameter")
    tracer.add_bias(own, shared, kind)
    edges_between(tracer, shared[owner], nodes, "spread")
    return result


def _widened(tracer: Tracer, node: Node, x: Neurons, elements: Elements, shape: torch.Size) -> Neurons:
    """Neurons that get an axis from a parameter, (d, 1) with (d, n), as nodes of their own at each place of it.

    Along an axis that they had before, the places are positions of the same neurons.
    """
    numbers = elements.numbers.expand(shape)
    before = (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)
    place = torch.zeros([1] * len(shape), dtype=torch.long)
    for d, (old, new) in enumerate(zip(before, shape, strict=True)):
        if old == 1 < new and (numbers != numbers.narrow(d, 0, 1)).any():
            place = place * new + torch.arange(new).reshape(-1, *[1] * (len(shape) - 1 - d))
    if place.numel() == 1:
        return x
    labels, place = without_repeats([x.labels.expand(shape), place.expand(shape)])
    labels = tracer.nodes.find(labels)
    neuron = labels >= 0
    pairs, which = unique_pairs(labels[neuron], place[neuron])
    copies = tracer.nodes.new(f"{node.name}.copy", pairs.shape[1], "copy", pairs[:1])
    edges_between(tracer, pairs[0], copies, "copy")
    labels[neuron] = copies[which]
    return Neurons(labels.expand(shape))


def _pairs(labels: Tensor, numbers: Tensor) -> Tensor:
    """Which neurons meet which elements: (2, pairs), sorted."""
    neuron = labels >= 0
    return unique_pairs(labels[neuron], numbers[neuron])[0]


def _uneven(pairs: Tensor) -> bool:
    """Whether some neurons meet more elements than others."""
    counts = pairs[0].unique_consecutive(return_counts=True)[1]
    return bool((counts != counts[:1]).any())


@register_rule(aten.prelu)
def prelu(tracer: Tracer, node: Node, x: Value, weight: Value) -> Value:
    """A parametric activation: its slope is a feature of the neurons it is applied to."""
    if isinstance(x, Neurons) and isinstance(weight, Elements):
        shape = [1] * x.labels.dim()
        if x.labels.dim() > 1:
            shape[1] = weight.shape[0]
        return with_parameter(tracer, node, x, weight.move(torch.reshape, (weight, shape), {}), "slope")
    return elementwise(tracer, node, (x, weight), {})
