"""Functions without weights that work entry by entry, and those that must be tried if they do.

A function of neurons alone, the same for all of them, changes nothing in the graph. What tells
neurons apart must be in it: several neurons, a parameter, a constant that differs between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.rules.pairs import product_of, used_by
from ngopt.graph.rules.parameters import with_parameter
from ngopt.graph.rules.registry import functions, packet_of, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import Applied, Tracer
from ngopt.graph.tracing.values import (
    Neurons,
    Unknown,
    Value,
    folded,
    nodes_among,
    same_along,
    without_repeats,
)

aten = torch.ops.aten


def constant(tracer: Tracer, call: Node, *args: Any, **kwargs: Any) -> Value:
    """A function of constants is computed."""
    return call.target(*args, **kwargs)  # type: ignore[operator]


def elementwise(tracer: Tracer, call: Node, args: tuple, kwargs: dict) -> Value:
    """A function without a rule of its own.

    What it is applied to keeps its meaning if it works entry by entry.
    """
    value = call.meta.get("val")
    if not isinstance(value, Tensor):
        return tracer.unknown(call)
    leaves = tree_leaves((args, kwargs))
    operands = [a for a in leaves if isinstance(a, (Neurons, Elements, Unknown, Tensor))]
    fitting = [a for a in operands if _broadcasts(a.shape, value.shape)]
    neurons = [a for a in operands if isinstance(a, Neurons)]
    elements = [a for a in fitting if isinstance(a, Elements)]
    if neurons:
        all_fit = all(_broadcasts(a.shape, value.shape) for a in neurons)
        if all_fit and _is_entrywise(tracer, call, neurons[0]):
            return _of_neurons(tracer, call, neurons, fitting)
    elif elements:
        return _of_elements(tracer, call, elements, fitting)
    elif fitting:
        return Unknown(value.shape, all(_is_uniform(a) for a in fitting))
    return tracer.unknown(call)


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


def _of_neurons(tracer: Tracer, call: Node, neurons: list[Neurons], operands: list) -> Value:
    """Several neurons are factors; parameters and constants meet the result, one by one."""
    shape = tracer.shape_of(call)
    result = neurons[0]
    for factor in neurons[1:]:
        result = product_of(tracer, call, result, factor)
    for other in operands:
        result = Neurons(result.labels.expand(shape))
        if isinstance(other, Elements):
            result = with_parameter(tracer, call, result, other, "slope")
        elif isinstance(other, Tensor):
            meet_constant(tracer, result, other)
        elif isinstance(other, Unknown) and _differ(result.labels, torch.empty(other.shape)):
            tracer.pin(result.labels)
    applied(tracer, call, result.labels)
    return Neurons(result.labels.expand(shape))


def applied(tracer: Tracer, call: Node, labels: Tensor) -> None:
    """Notes down that a function was applied to neurons."""
    values = [tracer.values[a] if isinstance(a, Node) else a for a in call.args]
    is_alone = sum(map(_is_traced, values)) == 1 and _is_traced(values[0])
    name = str(packet_of(call)).rsplit(".", 1)[-1].rstrip("_")
    function = None
    if torch.Tag.nondeterministic_seeded not in getattr(call.target, "tags", ()):
        numbers = [value for value in values if not _is_traced(value)]
        constants = [float(x.flatten()[0]) if isinstance(x, Tensor) else x for x in numbers]
        function = str((call.target, constants, call.kwargs))
    whole = name if is_alone else f"{name} of several"
    tracer.applied.append(Applied(nodes_among(labels), whole, function))


def _is_traced(value: Value) -> bool:
    """Whether a value is more than a number that is the same for all neurons."""
    if isinstance(value, Tensor):
        return not _is_uniform(value)
    return isinstance(value, (Neurons, Elements, Unknown))


def _of_elements(tracer: Tracer, call: Node, elements: list[Elements], operands: list) -> Elements:
    """A parameter times or plus others, constants, and what was computed of it."""
    shape = tracer.shape_of(call)
    largest_first = sorted(elements, key=lambda a: -a.shape.numel())
    first, *others = (a.apply(lambda x: x.broadcast_to(shape)) for a in largest_first)
    if not _treats_alike(tracer, call, [first, *others], operands):
        tracer.fixed.add(first.parameter)
    return first.accompanied(other for other in others if other.parameter != first.parameter)


def _treats_alike(tracer: Tracer, call: Node, elements: list[Elements], operands: list) -> bool:
    """Whether a function treats all elements of a parameter alike: rows may be exchanged."""
    first, *others = elements
    if first.shape.numel() < tracer.parameters[first.parameter].numel:
        return False  # the rest may go through other functions
    if torch.Tag.pointwise not in getattr(call.target, "tags", ()):
        return False
    if not all(isinstance(a, Elements) or _is_uniform(a) for a in operands):
        return False
    again = [other for other in others if other.parameter == first.parameter]
    return all(torch.equal(other.numbers, first.numbers) for other in again)


def _is_uniform(other: Value) -> bool:
    """Whether what meets a parameter moves along when rows of the parameter are exchanged."""
    if isinstance(other, Tensor):
        return other.numel() <= 1 or same_along(other.flatten(), 0)
    return isinstance(other, Unknown) and (other.equivariant or other.shape.numel() <= 1)


def _differ(labels: Tensor, other: Tensor) -> bool:
    """Whether a dimension is one of different neurons for which another tensor may differ."""
    labels = folded(labels)
    other = other.expand(labels.shape)
    changing = zip(labels.shape, labels.stride(), other.stride(), strict=True)
    return any(n > 1 and first != 0 and second != 0 for n, first, second in changing)


def meet_constant(tracer: Tracer, x: Neurons, constant: Tensor) -> None:
    """Where a constant differs between neurons, each of its values is a node with edges to those.

    A sinusoidal position has other values for every neuron, the slope of an ALiBi other ones for
    every head, and those of a rotary embedding are the same for all heads.
    """
    if constant.numel() <= 1:
        return
    whole = folded(constant.expand(x.shape))
    if not _differ(x.labels, whole):
        return
    labels, values = without_repeats([folded(x.labels), whole])
    labels = tracer.nodes.find(labels).flatten()
    values = values.to(torch.complex128).flatten()
    inputs = tracer.nodes.marked(Mark.INPUT)
    order = labels.argsort(stable=True)
    found = labels[order]
    order = order[(found > 0) & ~torch.isin(found, inputs)]  # inputs are told apart as they are
    nodes, counts = labels[order].unique_consecutive(return_counts=True)
    if not len(nodes):
        return
    if not same_along(counts, 0):
        tracer.pin(nodes)
        return
    numbers = torch.view_as_real(values[order]).reshape(len(nodes), -1)
    rows, owner = numbers.unique(dim=0, return_inverse=True)
    if len(rows) > 1:
        constants = tracer.constant_nodes(rows)
        tracer.edges(None, constants[owner], nodes, "spread")


def is_declared_entrywise(call: Node) -> bool:
    """Whether torch says that a function works entry by entry, or at random."""
    tags = getattr(call.target, "tags", ())
    return torch.Tag.pointwise in tags or torch.Tag.nondeterministic_seeded in tags


def _is_entrywise(tracer: Tracer, call: Node, x: Neurons) -> bool:
    """Whether a function leaves each neuron on its own.

    If torch does not say so, it is tried on random numbers.
    """
    if is_declared_entrywise(call):
        return True
    labels = tracer.nodes.find(x.labels)
    tried = {int(labels.min()), int(labels.max())}
    return all(_changes_only(tracer, call, x, labels == one) for one in tried)


def _changes_only(tracer: Tracer, call: Node, x: Neurons, chosen: Tensor) -> bool:
    """Whether other numbers for some neurons change the result of a function at these alone."""
    if chosen.all():
        return True
    numbers: dict[Node, Tensor] = {}

    def sample(argument: Any, changed: bool) -> Any:
        """Copies, as the function may work in place."""
        known = tracer.values[argument] if isinstance(argument, Node) else argument
        if isinstance(known, Tensor):
            return known.clone()
        if not isinstance(known, (Neurons, Elements, Unknown)):
            return known
        value = numbers.setdefault(argument, _random(argument.meta["val"])).clone()
        return torch.where(chosen, _random(value), value) if changed and known is x else value

    def result(changed: bool) -> Tensor:
        args, kwargs = tree_map(lambda a: sample(a, changed), (call.args, call.kwargs))
        return call.target(*args, **kwargs)  # type: ignore[operator]

    try:
        is_same = result(changed=False) == result(changed=True)
        return bool(is_same[~chosen.expand(is_same.shape)].all())
    except Exception:
        return False


def _random(like: Tensor) -> Tensor:
    """Numbers of the shape and type of a tensor, which may have no data."""
    shape = tuple(like.shape)
    if like.dtype.is_floating_point or like.dtype.is_complex:
        return torch.randn(shape, dtype=like.dtype)
    return torch.randint(0, 2, shape).to(like.dtype)


KNOWN_CREATIONS = functions("new_zeros new_ones new_full zeros_like ones_like full_like")
RANDOM_CREATIONS = functions("new_empty rand_like randn_like empty_like")


@register_rule(*KNOWN_CREATIONS, *RANDOM_CREATIONS)
def creation(
    tracer: Tracer,
    call: Node,
    like: Value,
    *args: Any,
    **kwargs: Any,
) -> Value:
    """A constant of a tensor's shape.

    Random numbers are the same for all neurons, as none is singled out.
    """
    tracer.data.discard(call)
    (source,) = call.all_input_nodes[:1]
    zeros = torch.zeros(tuple(like.shape), dtype=source.meta["val"].dtype)
    value = call.target(zeros, *args, **kwargs)  # type: ignore[operator]
    return value if packet_of(call) in KNOWN_CREATIONS else torch.zeros_like(value)


@register_rule(aten.view_as_complex)
def view_as_complex(tracer: Tracer, call: Node, x: Value) -> Value:
    """A node for each pair of real neurons."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    (labels,) = tracer.nodes.find_all(x.labels)
    pairs = labels.reshape(-1, 2)
    pairs, which = pairs.unique(dim=0, return_inverse=True)
    if (pairs <= 0).any():
        return tracer.unknown(call)
    nodes = tracer.nodes.new(call.name, len(pairs), "product", pairs.T)
    used_by(tracer, pairs[:, 0], nodes, "left")
    used_by(tracer, pairs[:, 1], nodes, "right")
    labels = nodes[which].reshape(labels.shape[:-1])
    return Neurons(labels.expand(tracer.shape_of(call)))


@register_rule(aten.view_as_real)
def view_as_real(tracer: Tracer, call: Node, x: Value) -> Value:
    """Two nodes for each complex neuron."""
    if not isinstance(x, Neurons):
        return tracer.unknown(call)
    (labels,) = tracer.nodes.find_all(x.labels)
    numbers, which = labels.unique(return_inverse=True)
    if (numbers <= 0).any():
        return tracer.unknown(call)
    parts = []
    for kind in ("left", "right"):
        nodes = tracer.nodes.new(f"{call.name}.{kind}", len(numbers), "product", numbers[None])
        tracer.edges(None, numbers, nodes, kind)
        parts.append(nodes)
    labels = torch.stack(parts, -1)[which]
    return Neurons(labels.expand(tracer.shape_of(call)))


@register_rule(aten.prelu)
def prelu(tracer: Tracer, call: Node, x: Value, weight: Value) -> Value:
    """A parametric activation: its slope is a feature of the neurons it is applied to."""
    if not (isinstance(x, Neurons) and isinstance(weight, Elements)):
        return elementwise(tracer, call, (x, weight), {})
    shape = [1] * x.labels.dim()
    if x.labels.dim() > 1:
        shape[1] = weight.shape[0]
    slopes = weight.apply(lambda w: w.reshape(shape))
    return with_parameter(tracer, call, x, slopes, "slope")
