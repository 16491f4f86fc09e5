"""Functions without weights that work entry by entry, and those of which it must be seen whether they do.

A function of neurons alone, the same for all of them, changes nothing in the graph. What tells neurons
apart must be in it: several neurons, a parameter, a constant that differs between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.rules.edges import diagonal, edges_between
from ngopt.graph.rules.pairs import product_of
from ngopt.graph.rules.parameters import with_parameter
from ngopt.graph.rules.registry import packet_of, register_rule
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Unknown, Value, folded, nodes_among, without_repeats

aten = torch.ops.aten

ACTIVATIONS = """relu relu_ relu6 hardtanh hardtanh_ gelu silu silu_ sigmoid sigmoid_ tanh tanh_ leaky_relu
    leaky_relu_ elu elu_ selu selu_ celu mish mish_ softplus hardswish hardswish_ hardsigmoid
    hardsigmoid_ softmax log_softmax sin cos exp softsign glu logsigmoid rrelu prelu""".split()


def constant(tracer: Tracer, node: Node, *args: Any, **kwargs: Any) -> Value:
    """A function of constants is computed."""
    return node.target(*args, **kwargs)  # type: ignore[operator]


def elementwise(tracer: Tracer, node: Node, args: tuple, kwargs: dict) -> Value:
    """Any function without a rule of its own: what it is applied to keeps its meaning if it works entry by entry."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return tracer.unknown(node)
    operands = [a for a in tree_leaves((args, kwargs)) if isinstance(a, (Neurons, Elements, Unknown, Tensor))]
    if any(isinstance(a, Neurons) and not _broadcasts(a.shape, value.shape) for a in operands):
        return tracer.unknown(node)
    operands = [a for a in operands if _broadcasts(a.shape, value.shape)]
    neurons = [a for a in operands if isinstance(a, Neurons)]
    if neurons and _is_entrywise(tracer, node, neurons[0]):
        return _of_neurons(tracer, node, neurons, operands)
    elements = sorted((a for a in operands if isinstance(a, Elements)), key=lambda a: -a.shape.numel())
    if neurons or not operands:
        return tracer.unknown(node)
    if elements:
        return _of_elements(tracer, node, elements, operands)
    return Unknown(value.shape, all(_is_uniform(a) for a in operands))


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


def _of_neurons(tracer: Tracer, node: Node, neurons: list[Neurons], operands: list) -> Value:
    """Several neurons are factors as in a product; parameters and constants meet the result, one after the other."""
    shape = tracer.shape_of(node)
    result: Value = neurons[0]
    for factor in neurons[1:]:
        result = product_of(tracer, node, result, factor) if isinstance(result, Neurons) else result
    for other in operands:
        if not isinstance(result, Neurons):
            return result
        result = Neurons(result.labels.expand(shape))
        if isinstance(other, Elements):
            result = with_parameter(tracer, node, result, other, "slope")
        elif isinstance(other, Tensor):
            meet_constant(tracer, result, other)
        elif isinstance(other, Unknown):
            tracer.pin(*_told_apart(result.labels, torch.empty(other.shape)))
    if isinstance(result, Neurons):
        applied(tracer, node, result.labels)
    return Neurons(result.labels.expand(shape)) if isinstance(result, Neurons) else result


def applied(tracer: Tracer, node: Node, labels: Tensor) -> None:
    """Notes down that a function was applied to neurons."""
    labels = nodes_among(labels)
    name = str(packet_of(node)).rsplit(".", 1)[-1]
    if name in ACTIVATIONS:
        tracer.activations.append((labels, name.rstrip("_")))
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        known = [tracer.values[a] if isinstance(a, Node) else a for a in node.args]
        constants = [float(a.flatten()[0]) if isinstance(a, Tensor) else a for a in known if not _is_traced(a)]
        tracer.functions.append((labels, str((node.target, constants, node.kwargs))))


def tell_functions_apart(tracer: Tracer) -> None:
    """Where not all neurons of a layer went through the same functions, nodes for these have edges to them.

    Behind cat([-x[2:], x[:2]]) the first two neurons of x are no twins of the others.
    """
    numbers: dict[str, int] = {}
    history = torch.zeros(tracer.nodes.starts[-1], dtype=torch.long)
    for labels, function in tracer.functions:
        nodes = tracer.nodes.find(labels)
        history[nodes] = history[nodes] * 1_000_003 + numbers.setdefault(function, len(numbers) + 1)
    everything = torch.arange(len(history))
    found = tracer.nodes.find(everything)
    inputs = tracer.nodes.find(torch.cat([*tracer.inputs, found[:0]]))
    nodes = everything[(found == everything) & ~torch.isin(everything, inputs)]
    groups = tracer.nodes.group_of(nodes)
    owner = history[nodes].unique(return_inverse=True)[1]
    pairs = torch.stack([groups, owner]).unique(dim=1)
    mixed, counts = pairs[0].unique_consecutive(return_counts=True)
    for group in mixed[counts > 1].tolist():
        members = groups == group
        which, place = owner[members].unique(return_inverse=True)
        functions = tracer.constant_nodes(torch.stack([torch.full_like(which, -1), which], dim=1))
        edges_between(tracer, functions[place], nodes[members], "spread")


def _is_traced(value: Value) -> bool:
    """Whether a value is more than a number that is the same for all neurons."""
    return isinstance(value, (Neurons, Elements, Unknown)) or (isinstance(value, Tensor) and not _is_uniform(value))


def _of_elements(tracer: Tracer, node: Node, elements: list[Elements], operands: list) -> Value:
    """A parameter times or plus others, constants, and what was computed of it."""
    shape = tracer.shape_of(node)
    first, *others = (a if a.shape == shape else a.move(torch.broadcast_to, (a, shape), {}) for a in elements)
    again = [other for other in others if other.parameter == first.parameter]
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    uniform = pointwise and all(isinstance(a, Elements) or _is_uniform(a) for a in operands)
    is_part = first.shape.numel() < tracer.parameters[first.parameter].numel  # the rest may go through others
    if is_part or not uniform or any(not torch.equal(other.numbers, first.numbers) for other in again):
        tracer.fixed.add(first.parameter)
    return first.accompanied(other for other in others if other.parameter != first.parameter)


def _is_uniform(other: Value) -> bool:
    """Whether a constant, or what was computed of a parameter, moves along when rows of a parameter are exchanged."""
    if not isinstance(other, Tensor):
        return isinstance(other, Unknown) and (other.equivariant or other.shape.numel() <= 1)
    return other.numel() <= 1 or bool((other == other.flatten()[0]).all())


def _told_apart(labels: Tensor, other: Tensor) -> list[Tensor]:
    """The neurons along dimensions in which another tensor may differ, none if it has the same for all."""
    labels = folded(labels)
    other = other.expand(labels.shape)
    both = (a != 0 and b != 0 and n > 1 for a, b, n in zip(labels.stride(), other.stride(), labels.shape, strict=True))
    return [labels] if any(both) else []


def meet_constant(tracer: Tracer, x: Neurons, constant: Tensor) -> None:
    """Where a constant differs between neurons, each of its values is a node with edges to those that have it.

    A sinusoidal position has other values for every neuron, the slope of an ALiBi other ones for every
    head, and those of a rotary embedding are the same for all heads.
    """
    if constant.numel() <= 1 or not _told_apart(x.labels, folded(constant.expand(x.shape))):
        return
    labels, values = without_repeats([folded(x.labels), folded(constant.expand(x.shape))])
    labels, values = tracer.nodes.find(labels).flatten(), values.to(torch.complex128).flatten()
    order = labels.argsort(stable=True)
    inputs = torch.cat([*tracer.inputs, labels[:0]])  # which are told apart as they are
    order = order[(labels[order] >= 0) & ~torch.isin(labels[order], tracer.nodes.find(inputs))]
    nodes, counts = labels[order].unique_consecutive(return_counts=True)
    if not len(nodes):
        return
    if (counts != counts[0]).any():
        tracer.pin(nodes)
        return
    numbers = torch.view_as_real(values[order])  # (entries, 2)
    rows, owner = numbers.reshape(len(nodes), -1).unique(dim=0, return_inverse=True)
    if len(rows) > 1:
        edges_between(tracer, tracer.constant_nodes(rows)[owner], nodes, "spread")


def is_declared_entrywise(node: Node) -> bool:
    """Whether torch says that a function works entry by entry, or at random."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or torch.Tag.nondeterministic_seeded in tags


def _is_entrywise(tracer: Tracer, node: Node, x: Neurons) -> bool:
    """Whether a function leaves each neuron on its own; if torch does not say so, it is tried on random numbers."""
    if is_declared_entrywise(node):
        return True
    labels = tracer.nodes.find(x.labels)
    return all(_changes_only(tracer, node, x, labels == one) for one in {int(labels.min()), int(labels.max())})


def _changes_only(tracer: Tracer, node: Node, x: Neurons, chosen: Tensor) -> bool:
    """Whether other numbers for some neurons change the result of a function at these alone."""
    if chosen.all():
        return True
    numbers: dict[Node, Tensor] = {}

    def sample(argument: Any, changed: bool) -> Any:
        known = tracer.values[argument] if isinstance(argument, Node) else argument
        if not isinstance(known, (Neurons, Elements, Unknown)):
            return known.clone() if isinstance(known, Tensor) else known  # the function may work in place
        value = numbers.setdefault(argument, _random(argument.meta["val"]))
        return torch.where(chosen, _random(value), value) if changed and known is x else value

    try:
        calls = [tree_map(lambda a, c=changed: sample(a, c), (node.args, node.kwargs)) for changed in (False, True)]
        first, second = (node.target(*args, **kwargs) for args, kwargs in calls)  # type: ignore[operator]
        return bool((first == second)[~chosen.expand(first.shape)].all())
    except Exception:
        return False


def _random(like: Tensor) -> Tensor:
    """Numbers of the shape and type of a tensor, which may have no data."""
    shape = tuple(like.shape)
    if like.dtype.is_floating_point or like.dtype.is_complex:
        return torch.randn(shape, dtype=like.dtype)
    return torch.randint(0, 2, shape).to(like.dtype)


@register_rule(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.zeros_like, aten.ones_like,
               aten.rand_like, aten.randn_like, aten.full_like, aten.empty_like)  # fmt: skip
def creation(tracer: Tracer, node: Node, like: Value, *args: Any, **kwargs: Any) -> Value:
    """A constant of a tensor's shape; random numbers are the same for all neurons, as none is singled out."""
    tracer.data.discard(node)
    (source,) = node.all_input_nodes[:1]
    zeros = torch.zeros(tuple(like.shape), dtype=source.meta["val"].dtype)
    value = node.target(zeros, *args, **kwargs)  # type: ignore[operator]
    return value if packet_of(node) in KNOWN_CREATIONS else torch.zeros_like(value)


KNOWN_CREATIONS = {aten.new_zeros, aten.new_ones, aten.new_full, aten.zeros_like, aten.ones_like, aten.full_like}


@register_rule(aten.view_as_complex)
def view_as_complex(tracer: Tracer, node: Node, x: Value) -> Value:
    """A node for each pair of real neurons."""
    if not isinstance(x, Neurons):
        return tracer.unknown(node)
    (labels,) = tracer.nodes.find_all(x.labels)
    pairs, which = labels.reshape(-1, 2).unique(dim=0, return_inverse=True)
    if (pairs < 0).any():
        return tracer.unknown(node)
    numbers = tracer.nodes.new(node.name, len(pairs), "product", pairs.T)
    diagonal(tracer, pairs[:, 0], numbers, "left")
    diagonal(tracer, pairs[:, 1], numbers, "right")
    return Neurons(numbers[which].reshape(labels.shape[:-1]).expand(tracer.shape_of(node)))


@register_rule(aten.view_as_real)
def view_as_real(tracer: Tracer, node: Node, x: Value) -> Value:
    """Two nodes for each complex neuron."""
    if not isinstance(x, Neurons):
        return tracer.unknown(node)
    (labels,) = tracer.nodes.find_all(x.labels)
    numbers, which = labels.unique(return_inverse=True)
    if (numbers < 0).any():
        return tracer.unknown(node)
    parts = []
    for kind in ("left", "right"):
        parts.append(tracer.nodes.new(f"{node.name}.{kind}", len(numbers), "product", numbers[None]))
        diagonal(tracer, numbers, parts[-1], kind)
    return Neurons(torch.stack(parts, -1)[which].expand(tracer.shape_of(node)))


@register_rule(aten.prelu)
def prelu(tracer: Tracer, node: Node, x: Value, weight: Value) -> Value:
    """A parametric activation: its slope is a feature of the neurons it is applied to."""
    if isinstance(x, Neurons) and isinstance(weight, Elements):
        shape = [1] * x.labels.dim()
        if x.labels.dim() > 1:
            shape[1] = weight.shape[0]
        return with_parameter(tracer, node, x, weight.move(torch.reshape, (weight, shape), {}), "slope")
    return elementwise(tracer, node, (x, weight), {})
