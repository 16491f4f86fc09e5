"""Bare parameters that are added to activations or multiplied with them."""

from __future__ import annotations

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

    Where each neuron has elements of its own, a scale is edges from one to one to new
    nodes and anything else a feature of the neuron; elements at different positions are
    slots. Elements that several neurons share belong to a node of their own, with edges
    of value 1 to those.
    """
    for other in elements.factors:
        x = with_parameter(tracer, call, x, other, kind)
    spec = tracer.parameters[elements.parameter]
    if elements.parameter in tracer.row_normalised and len(spec.shape) > 1:
        tracer.pin(x.labels)  # its rows may be parts of them
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    place = _places_on_new_axes(x.shape, elements, shape)
    # a neuron is another one at each place of a new axis, as in selective
    if place.numel() > 1:
        return _along_new_axes(tracer, call, x, elements, kind, place)
    numbers = elements.numbers.expand(shape)
    labels, pairs = _meeting(tracer, x.labels.expand(shape), numbers)
    # only then are the elements a table, with a row for each neuron
    if pairs.numel() and not _uneven(pairs):
        labels = _entry_by_entry(tracer, labels, pairs, elements.parameter, kind)
    else:
        tracer.pin(labels)
    return Neurons(labels.expand(shape))


def _entry_by_entry(
    tracer: Tracer, labels: Tensor, pairs: Tensor, parameter: int, kind: str
) -> Tensor:
    """What labels become by a parameter of which every neuron meets equally many
    elements.

    pairs: which neurons meet which elements, (2, pairs).
    """
    nodes = pairs[0].unique_consecutive()
    # pairs are sorted, those of one neuron side by side
    met = pairs[1].reshape(len(nodes), -1)  # (neurons, elements of each)
    sets, owner = met.unique(dim=0, return_inverse=True)
    own = Elements(parameter, sets.squeeze(1))
    # blocks of a graph are strided views, and an element lies in one set alone to be a
    # slot there
    if own.view() is None or has_duplicates(sets):
        tracer.pin(nodes)
        return labels
    name = tracer.parameters[parameter].name
    # as a scale that heads share, in head norms
    if len(sets) < len(nodes):
        shared = tracer.nodes.new(name, len(sets), "parameter")
        tracer.edges(own, None, shared, kind)
        tracer.edges(None, shared[owner], nodes, "spread")
        return labels
    nodes = nodes[owner.argsort()]  # in the order of their elements
    if kind not in SCALES:
        tracer.edges(own, None, nodes, kind)
        return labels
    targets = tracer.nodes.new(name, len(nodes), made_of=nodes[None])
    tracer.edges(own, nodes, targets, kind)
    return replaced_labels(labels, nodes, targets)


def _meeting(tracer: Tracer, labels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Labels, cut where all repeats, and which neurons meet which elements, (2, pairs)."""
    whole, numbers = without_repeats([labels, numbers])
    labels = tracer.nodes.find(whole)
    pairs = _pairs(labels, numbers)
    # a class token is other nodes than the patches until they are unified, as in tokens
    if _uneven(pairs) and tracer.unify_places(whole, -1) is not None:
        labels = tracer.nodes.find(whole)  # tokens that are the same neurons after all
        pairs = _pairs(labels, numbers)
    return labels, pairs


def _places_on_new_axes(
    before: torch.Size, elements: Elements, shape: torch.Size
) -> Tensor:
    """Numbers of the places along the axes that a tensor gets from a parameter, from 0.

    They broadcast to the shape. Along an axis that the tensor had before, the places
    are positions of the same neurons.
    """
    numbers = elements.numbers.expand(shape)
    missing = len(shape) - len(before)
    sizes = (1,) * missing + tuple(before)
    place = torch.zeros([1] * len(shape), dtype=torch.long)
    for d, (old, new) in enumerate(zip(sizes, shape, strict=True)):
        if old == 1 < new and not same_along(numbers, d):
            behind = [1] * (len(shape) - 1 - d)
            along = torch.arange(new).reshape(-1, *behind)
            # mixed radix: numbers of places run fastest along the last new axis
            place = place * new + along
    return place


def _along_new_axes(
    tracer: Tracer, call: Node, x: Neurons, elements: Elements, kind: str, place: Tensor
) -> Neurons:
    """(d, 1) neurons with (d, n) elements: nodes of their own at each place."""
    shape = torch.broadcast_shapes(x.shape, elements.shape)
    whole = [t.expand(shape) for t in (x.labels, elements.numbers, place)]
    labels, numbers, place = without_repeats(whole)
    labels = tracer.nodes.find(
        labels
    ).clone()  # what was found may be a view of what was asked for
    neuron = labels > 0
    # a pair of neuron and place is a new node; met: which of these meets which element
    pairs, which = unique_pairs(labels[neuron], place[neuron])
    met, _ = unique_pairs(which, numbers[neuron])
    own = None
    # equally many pairs: every new node meets one element
    if kind in SCALES and met.shape == pairs.shape:
        own = _table(elements.parameter, pairs[0], met[1])
    nodes = _nodes_at_places(tracer, call, pairs[0], own, kind)
    labels[neuron] = nodes[which]
    result = Neurons(labels.expand(shape))
    if own is not None:
        return result
    return with_parameter(tracer, call, result, elements, kind)


def _table(parameter: int, sources: Tensor, numbers: Tensor) -> Elements | None:
    """The elements that each neuron meets, one at each of its places, (neurons,
    places).

    None where they are no view of the parameter.
    """
    neurons, places = sources.unique_consecutive(return_counts=True)
    if not same_along(places, 0):
        return None
    own = Elements(parameter, numbers.reshape(len(neurons), -1))
    return None if own.view() is None else own


def _nodes_at_places(
    tracer: Tracer, call: Node, sources: Tensor, own: Elements | None, kind: str
) -> Tensor:
    """New nodes behind a scale from one to one, or behind copies of the sources without
    one."""
    count = len(sources)
    if own is None:
        nodes = tracer.nodes.new(call.name, count, "copy", sources[None])
        tracer.edges(None, sources, nodes, "copy")
        return nodes
    name = tracer.parameters[own.parameter].name
    # free if the sources are: scaled entries of an input are joined as the entries
    # would be
    nodes = tracer.nodes.new(name, count, made_of=sources[None])
    tracer.edges(own, sources.reshape(own.shape), nodes.reshape(own.shape), kind)
    return nodes


def _pairs(labels: Tensor, numbers: Tensor) -> Tensor:
    """Which neurons meet which elements: (2, pairs), sorted."""
    neuron = labels > 0
    return unique_pairs(labels[neuron], numbers[neuron])[0]


def _uneven(pairs: Tensor) -> bool:
    """Whether some neurons meet more elements than others."""
    counts = pairs[0].unique_consecutive(return_counts=True)[1]
    return len(counts) > 0 and not same_along(counts, 0)
