"""Bare parameters that are added to activations or multiplied with them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.core import View
from ngopt.graph.rules.edges import add_scale, edges_between
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    exchanged,
    unique_pairs,
    without_repeats,
)


def with_parameter(tracer: Tracer, node: Node, x: Neurons, elements: Elements, kind: str) -> Neurons:
    """A parameter that is added to neurons or multiplied with them, entry by entry.

    Where each neuron has elements of its own, a scale is diagonal edges to new nodes and anything
    else a feature of the neuron; elements at different positions are slots. Elements that several
    neurons share belong to a node of their own, with edges of value 1 to those.
    """
    for other in elements.also:
        x = with_parameter(tracer, node, x, other, kind)
    if elements.parameter in tracer.rowwise and len(tracer.parameters[elements.parameter].shape) > 1:
        tracer.pin(x.labels)  # its rows may be parts of them
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    place = _places_on_new_axes(x.shape, elements, shape)
    if place.numel() > 1:
        return _along_new_axes(tracer, node, x, elements, kind, place)
    whole, numbers = without_repeats([x.labels.expand(shape), elements.numbers.expand(shape)])
    labels = tracer.nodes.find(whole)
    pairs = _pairs(labels, numbers)
    if _uneven(pairs) and tracer.vector(whole, -1) is not None:  # tokens that are the same neurons after all
        labels = tracer.nodes.find(whole)
        pairs = _pairs(labels, numbers)
    result = Neurons(labels.expand(shape))
    if not pairs.numel() or _uneven(pairs):
        tracer.pin(labels)
        return result
    nodes = pairs[0].unique_consecutive()
    table = pairs[1].reshape(len(nodes), -1)  # (neurons, elements of each)
    sets, owner = table.unique(dim=0, return_inverse=True)
    slots = sets[:, 0] if sets.shape[1] == 1 else sets
    own = Elements(elements.parameter, slots)
    view = own.view()
    if view is None or sets.unique().numel() != sets.numel():
        tracer.pin(nodes)
        return result
    name = tracer.parameters[elements.parameter].name
    if len(sets) == len(nodes):
        nodes = nodes[owner.argsort()]
        if kind not in ("scale", "gamma"):
            tracer.add_bias(own, nodes, kind)
            return result
        targets = tracer.nodes.new(name, len(nodes), made_of=nodes[None])
        add_scale(tracer, view, nodes, targets, kind)
        return Neurons(exchanged(labels, nodes, targets).expand(shape))
    shared = tracer.nodes.new(name, len(sets), "parameter")
    tracer.add_bias(own, shared, kind)
    edges_between(tracer, shared[owner], nodes, "spread")
    return result


def _places_on_new_axes(before: torch.Size, elements: Elements, shape: torch.Size) -> Tensor:
    """Numbers of the places along the axes that a tensor gets from a parameter with several elements there.

    Along an axis that it had before, the places are positions of the same neurons.
    """
    numbers = elements.numbers.expand(shape)
    sizes = (1,) * (len(shape) - len(before)) + tuple(before)
    place = torch.zeros([1] * len(shape), dtype=torch.long)
    for d, (old, new) in enumerate(zip(sizes, shape, strict=True)):
        if old == 1 < new and (numbers != numbers.narrow(d, 0, 1)).any():
            place = place * new + torch.arange(new).reshape(-1, *[1] * (len(shape) - 1 - d))
    return place


def _along_new_axes(tracer: Tracer, node: Node, x: Neurons, elements: Elements, kind: str, place: Tensor) -> Neurons:
    """(d, 1) neurons with (d, n) elements: nodes of their own at each place."""
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    tensors = [t.expand(shape) for t in (x.labels, elements.numbers, place)]
    labels, numbers, place = without_repeats(tensors)
    labels = tracer.nodes.find(labels)
    neuron = labels >= 0
    pairs, which = unique_pairs(labels[neuron], place[neuron])
    met = unique_pairs(which, numbers[neuron])[0]
    sources = pairs[0].unique_consecutive()
    view = None
    if kind in ("scale", "gamma") and met.shape[1] == pairs.shape[1] and not _uneven(pairs):
        view = Elements(elements.parameter, met[1].reshape(len(sources), -1)).view()
    name = node.name if view is None else tracer.parameters[elements.parameter].name
    nodes = tracer.nodes.new(name, pairs.shape[1], "copy" if view is None else "neuron", pairs[:1])
    labels = labels.clone()  # what was found may still be a view of what was asked for
    labels[neuron] = nodes[which]
    result = Neurons(labels.expand(shape))
    if view is None:
        edges_between(tracer, pairs[0], nodes, "copy")
        return with_parameter(tracer, node, result, elements, kind)
    wide = View(view.parameter, (*view.shape, 1), (*view.strides, 0), view.offset)
    tracer.add_block(wide, sources, nodes, (len(sources), view.shape[1], 1), kind=kind)
    return result


def _pairs(labels: Tensor, numbers: Tensor) -> Tensor:
    """Which neurons meet which elements: (2, pairs), sorted."""
    neuron = labels >= 0
    return unique_pairs(labels[neuron], numbers[neuron])[0]


def _uneven(pairs: Tensor) -> bool:
    """Whether some neurons meet more elements than others."""
    counts = pairs[0].unique_consecutive(return_counts=True)[1]
    return bool((counts != counts[:1]).any())
