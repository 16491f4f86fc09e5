"""Bare parameters that are added to activations or multiplied with them."""

import torch
from torch import Tensor
from torch.fx import Node

from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    has_duplicates,
    replaced_labels,
    same_along,
    unique_pairs,
    without_repeats,
)

SCALES = ("scale", "gamma")


def with_parameter(
    tracer: Tracer, call: Node, x: Neurons, elements: Elements, kind: str
) -> Neurons:
    """A parameter that is added to neurons or multiplied with them, entry by entry.

    If each neuron has elements of its own, a scale is edges from one to one to new
    nodes, and any other kind a feature of the neuron; elements at different positions
    are slots. Elements that several neurons share are features of a new node, with
    edges of value 1 to these neurons.
    """
    for factor in elements.factors:
        x = with_parameter(tracer, call, x, factor, kind)
    spec = tracer.parameters[elements.parameter]
    if elements.parameter in tracer.row_normalised and len(spec.shape) > 1:
        # the neurons may be combined with parts of normalised rows
        tracer.pin(x.labels)
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    place = _places_on_new_axes(x.shape, elements, shape)
    # a neuron becomes another one at each place of a new axis
    if place.numel() > 1:
        return _along_new_axes(tracer, call, x, elements, kind, place)
    whole = x.labels.expand(shape), elements.numbers.expand(shape)
    entries, numbers = without_repeats(whole)
    labels = tracer.nodes.find(entries)
    pairs = _pairs(labels, numbers)
    # a class token and the patches are different nodes until they are unified
    if _is_uneven(pairs) and tracer.unify_places(entries, -1) is not None:
        labels = tracer.nodes.find(entries)
        pairs = _pairs(labels, numbers)
    # only then are the elements a table, with a row for each neuron
    if pairs.numel() and not _is_uneven(pairs):
        labels = _entry_by_entry(tracer, labels, pairs, elements.parameter, kind)
    else:
        tracer.pin(labels)
    return Neurons(labels.expand(shape))


def _entry_by_entry(
    tracer: Tracer, labels: Tensor, pairs: Tensor, parameter: int, kind: str
) -> Tensor:
    """The labels after a parameter of which all neurons have equally many elements.

    pairs: of neurons and elements, (2, pairs).
    """
    nodes = pairs[0].unique_consecutive()
    # pairs are sorted by neurons
    elements = pairs[1].reshape(len(nodes), -1)  # (neurons, elements of each)
    rows, owner = elements.unique(dim=0, return_inverse=True)
    entries = Elements(parameter, rows.squeeze(1))
    # blocks of a graph are strided views, in which each element occurs once
    if entries.view() is None or has_duplicates(rows):
        tracer.pin(nodes)
        return labels
    name = tracer.parameters[parameter].name
    # several neurons have the same elements, such as a scale that heads share
    if len(rows) < len(nodes):
        shared = tracer.nodes.new(name, len(rows), "parameter")
        tracer.edges(entries, None, shared, kind)
        tracer.edges(None, shared[owner], nodes, "spread")
        return labels
    nodes = nodes[owner.argsort()]  # in the order of their elements
    if kind not in SCALES:
        tracer.edges(entries, None, nodes, kind)
        return labels
    targets = tracer.nodes.new(name, len(nodes), made_of=nodes[None])
    tracer.edges(entries, nodes, targets, kind)
    return replaced_labels(labels, nodes, targets)


def _places_on_new_axes(
    before: torch.Size, elements: Elements, shape: torch.Size
) -> Tensor:
    """Numbers, from 0, of the places along the axes that a parameter adds to a tensor.

    They broadcast to the shape. Places along axes that the tensor had before are
    positions of the same neurons.
    """
    numbers = elements.numbers.expand(shape)
    axes = len(shape)
    sizes = (1,) * (axes - len(before)) + tuple(before)
    place = torch.zeros([1] * axes, dtype=torch.long)
    for d, new in enumerate(shape):
        if sizes[d] == 1 < new and not same_along(numbers, d):
            # mixed radix: numbers grow fastest along the last new axis
            place = place * new + torch.arange(new).reshape(-1, *[1] * (axes - 1 - d))
    return place


def _along_new_axes(
    tracer: Tracer, call: Node, x: Neurons, elements: Elements, kind: str, place: Tensor
) -> Neurons:
    """(d, 1) neurons with (d, n) elements: a new node at each place."""
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    whole = [t.expand(shape) for t in (x.labels, elements.numbers, place)]
    labels, numbers, place = without_repeats(whole)
    # a copy, as find may return a view of the labels
    labels = tracer.nodes.find(labels).clone()
    is_neuron = labels > 0
    # each pair of neuron and place is a new node
    pairs, which = unique_pairs(labels[is_neuron], place[is_neuron])
    # new nodes, and the elements that each is combined with
    of_nodes, _ = unique_pairs(which, numbers[is_neuron])
    sources, count = pairs[0], len(pairs[0])
    scales = None
    # equally many pairs: every new node has one element
    if kind in SCALES and of_nodes.shape == pairs.shape:
        scales = _table(elements.parameter, sources, of_nodes[1])
    if scales is None:
        nodes = tracer.nodes.new(call.name, count, "copy", sources[None])
        tracer.edges(None, sources, nodes, "copy")
        labels[is_neuron] = nodes[which]
        copies = Neurons(labels.expand(shape))
        return with_parameter(tracer, call, copies, elements, kind)
    name = tracer.parameters[scales.parameter].name
    # made_of: scaled entries of an input can be unified as the entries can
    nodes = tracer.nodes.new(name, count, made_of=sources[None])
    targets = nodes.reshape(scales.shape)
    tracer.edges(scales, sources.reshape(scales.shape), targets, kind)
    labels[is_neuron] = nodes[which]
    return Neurons(labels.expand(shape))


def _table(parameter: int, sources: Tensor, numbers: Tensor) -> Elements | None:
    """The elements (neurons, places), one of each neuron at each of its places. None if
    they are no view of the parameter."""
    neurons, places = sources.unique_consecutive(return_counts=True)
    if not same_along(places, 0):
        return None
    entries = Elements(parameter, numbers.reshape(len(neurons), -1))
    return None if entries.view() is None else entries


def _pairs(labels: Tensor, numbers: Tensor) -> Tensor:
    """Sorted pairs of neurons and their elements, (2, pairs)."""
    is_neuron = labels > 0
    return unique_pairs(labels[is_neuron], numbers[is_neuron])[0]


def _is_uneven(pairs: Tensor) -> bool:
    """Whether some neurons have more elements than others."""
    counts = pairs[0].unique_consecutive(return_counts=True)[1]
    return len(counts) > 0 and not same_along(counts, 0)
