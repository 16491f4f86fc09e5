"""Functions without weights that work entry by entry, and those that must be tried if
they do.

A function of neurons alone, the same for all of them, changes nothing in the graph.
What tells neurons apart must be in it: several neurons, a parameter, a constant that
differs between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.rules.bare_parameters import with_parameter
from ngopt.graph.rules.neuron_pairs import product_of
from ngopt.graph.rules.registry import functions, register_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    has_one_value,
    nodes_among,
    same_along,
    with_zero_strides,
    without_repeats,
)

aten = torch.ops.aten

TRACED = (Neurons, Elements, Unknown)
"""What a tensor stands for that is no constant."""


def constant(tracer: Tracer, call: Node, *args: Any, **kwargs: Any) -> Value:
    """A function of constants is computed."""
    value = call.target(*args, **kwargs)  # type: ignore[operator]
    expected = call.meta.get("val")
    # of integer inputs that are traced as zeros a mask may leave another number than
    # elsewhere
    if (
        isinstance(value, Tensor)
        and isinstance(expected, Tensor)
        and value.shape != expected.shape
    ):
        return tracer.unknown(call)
    return value


def pointwise_function(tracer: Tracer, call: Node, args: tuple, kwargs: dict) -> Value:
    """A function without a rule of its own.

    What it is applied to keeps its meaning if it works entry by entry.
    """
    value = call.meta.get("val")
    if not isinstance(value, Tensor):
        return tracer.unknown(call)
    shape = value.shape
    leaves = tree_leaves((args, kwargs))
    tensors = _those((*TRACED, Tensor), leaves)
    fitting = [a for a in tensors if _broadcasts(a.shape, shape)]
    # of any shape: where one does not fit, nothing is known and all are pinned
    neurons = _those(Neurons, tensors)
    elements = _those(Elements, fitting)
    if neurons:
        return _of_neurons(tracer, call, neurons, fitting)
    if elements:
        return _of_elements(tracer, call, elements, fitting)
    if fitting:
        is_equivariant = all(_is_uniform(a) for a in fitting)
        return Unknown(shape, is_equivariant)
    return tracer.unknown(call)


def _those(kind: type | tuple, values: list) -> list:
    """Those of one kind among values."""
    return [value for value in values if isinstance(value, kind)]


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


def _of_neurons(
    tracer: Tracer, call: Node, neurons: list[Neurons], operands: list
) -> Value:
    """Several neurons are factors; parameters and constants meet the result, one by
    one."""
    shape = tracer.shape_of(call)
    all_fit = all(_broadcasts(x.shape, shape) for x in neurons)
    if not all_fit or not _is_entrywise(tracer, call, neurons[0]):
        return tracer.unknown(call)
    result = neurons[0]
    for factor in neurons[1:]:
        result = product_of(tracer, call, result, factor)
    result = Neurons(result.labels.expand(shape))
    for other in operands:
        result = _meet(tracer, call, result, other)
    note_function(tracer, call, result.labels)
    return result


def _meet(tracer: Tracer, call: Node, x: Neurons, other: Value) -> Neurons:
    """Neurons behind what meets them entry by entry: a parameter, a constant, something
    unknown."""
    if isinstance(other, Elements):
        return with_parameter(tracer, call, x, other, "slope")
    if isinstance(other, Tensor):
        tell_apart_by_constant(tracer, x, other)
    if isinstance(other, Unknown):
        # dense, as it may differ everywhere: stride 0 would say that it repeats
        dense = torch.empty(other.shape)
        if _differ(x.labels, dense):
            tracer.pin(x.labels)
    return x


def note_function(tracer: Tracer, call: Node, labels: Tensor) -> None:
    """Notes down that a function was applied to neurons."""
    values = [tracer.values[a] if isinstance(a, Node) else a for a in call.args]
    traced = [k for k, value in enumerate(values) if _is_traced(value)]
    path = str(packet_of(call))
    # relu_ is relu
    name = path.rsplit(".", 1)[-1].rstrip("_")
    if traced != [0]:
        name = f"{name} of several"
    nodes = nodes_among(labels)
    function = _function(call, values)
    tracer.applied_functions.append(AppliedFunction(nodes, name, function))


def _function(call: Node, values: list[Value]) -> str | None:
    """What tells a function from others, with its numbers and options; None for a
    random one."""
    # noise is new at every call, and singles out no neuron
    if torch.Tag.nondeterministic_seeded in _tags(call):
        return None
    numbers = [_number(value) for value in values if not _is_traced(value)]
    return str((call.target, numbers, call.kwargs))


def _number(value: Value) -> Any:
    """An argument that is the same for all neurons, a tensor's one number."""
    if isinstance(value, Tensor):
        # only uniform tensors come here: any entry does
        return float(value.flatten()[0])
    return value


def _tags(call: Node) -> Sequence[torch.Tag]:
    """What torch says of a function."""
    return getattr(call.target, "tags", ())


def _is_traced(value: Value) -> bool:
    """Whether a value is more than a number that is the same for all neurons."""
    if isinstance(value, Tensor):
        return not _is_uniform(value)
    return isinstance(value, TRACED)


def _of_elements(
    tracer: Tracer, call: Node, elements: list[Elements], operands: list
) -> Elements:
    """A parameter times or plus others, constants, and what was computed of it."""
    shape = tracer.shape_of(call)
    largest_first = sorted(elements, key=lambda a: -a.shape.numel())
    whole = [a.apply(lambda x: x.broadcast_to(shape)) for a in largest_first]
    first = whole[0]
    own = [a for a in whole if a.parameter == first.parameter]
    others = [a for a in whole if a.parameter != first.parameter]
    if not _treats_alike(tracer, call, own, operands):
        tracer.pinned_parameters.add(first.parameter)
    return first.with_factors(others)


def _treats_alike(
    tracer: Tracer, call: Node, own: list[Elements], operands: list
) -> bool:
    """Whether a function treats all elements of a parameter alike: rows may be
    exchanged.

    own: the operands that are this parameter.
    """
    first, *again = own
    size = tracer.parameters[first.parameter].numel
    if first.shape.numel() < size:
        return False  # the rest may go through other functions
    if torch.Tag.pointwise not in _tags(call):
        return False
    rest = [a for a in operands if not isinstance(a, Elements)]
    # in W + W.T an element meets another one of its own parameter
    is_same = all(torch.equal(a.numbers, first.numbers) for a in again)
    return is_same and all(_is_uniform(a) for a in rest)


def _is_uniform(other: Tensor | Unknown) -> bool:
    """Whether what meets a parameter moves along when rows of the parameter are
    exchanged."""
    if other.shape.numel() <= 1:
        return True
    if isinstance(other, Tensor):
        return has_one_value(other)
    return other.equivariant


def _differ(labels: Tensor, other: Tensor) -> bool:
    """Whether a dimension is one of different neurons for which another tensor may
    differ."""
    labels = with_zero_strides(labels)
    other = other.expand(labels.shape)
    for d, n in enumerate(labels.shape):
        # stride 0: the same all along
        both_change = labels.stride(d) and other.stride(d)
        if n > 1 and both_change:
            return True
    return False


def tell_apart_by_constant(tracer: Tracer, x: Neurons, constant: Tensor) -> None:
    """Where a constant differs between neurons, each of its values is a node with edges
    to those.

    A sinusoidal position has other values for every neuron, the slope of an ALiBi other
    ones for every head, and those of a rotary embedding are the same for all heads.
    """
    if constant.numel() <= 1:
        return
    whole = with_zero_strides(constant.expand(x.shape))
    if not _differ(x.labels, whole):
        return
    labels, values = without_repeats([with_zero_strides(x.labels), whole])
    labels = tracer.nodes.find(labels)
    inputs = tracer.nodes.marked(Mark.INPUT)
    is_input = torch.isin(labels, inputs)
    met = (labels > 0) & ~is_input  # inputs are told apart as they are
    if met.any():
        _tell_apart(tracer, labels[met], values[met])


def _tell_apart(tracer: Tracer, labels: Tensor, values: Tensor) -> None:
    """Edges to nodes from the values that each meets: values[i] is met by labels[i].

    Pins the nodes where some meet more values than others.
    """
    # stable: the values of each neuron stay in the order of places, to be compared
    labels, order = labels.sort(stable=True)
    nodes, counts = labels.unique_consecutive(return_counts=True)
    # values are rows to compare only if all neurons meet equally many
    if not same_along(counts, 0):
        tracer.pin(nodes)
        return
    # a type that holds all others; as pairs of reals, as unique takes no complex
    # numbers
    values = values[order].to(torch.complex128)
    numbers = torch.view_as_real(values).reshape(len(nodes), -1)
    rows, owner = numbers.unique(dim=0, return_inverse=True)
    # the same values for all neurons tell none apart
    if len(rows) > 1:
        constants = tracer.constant_nodes(rows)
        tracer.edges(None, constants[owner], nodes, "spread")


def is_declared_entrywise(call: Node) -> bool:
    """Whether torch says that a function works entry by entry, or at random."""
    tags = _tags(call)
    return torch.Tag.pointwise in tags or torch.Tag.nondeterministic_seeded in tags


def _is_entrywise(tracer: Tracer, call: Node, x: Neurons) -> bool:
    """Whether a function leaves each neuron on its own.

    If torch does not say so, it is tried on random numbers.
    """
    if is_declared_entrywise(call):
        return True
    labels = tracer.nodes.find(x.labels)
    # a running sum shows only by its first neuron, which a flip makes the last one
    tried = [labels == one for one in labels.aminmax()]
    return all(_changes_only(tracer, call, x, chosen) for chosen in tried)


def _changes_only(tracer: Tracer, call: Node, x: Neurons, chosen: Tensor) -> bool:
    """Whether other numbers for some neurons change the result of a function at these
    alone."""
    # one neuron at all places: there are no others
    if chosen.all():
        return True
    try:
        before = _samples(tracer, call)
        after = dict(before)
        for argument, numbers in before.items():
            if tracer.values[argument] is x:
                other = _random(numbers)
                after[argument] = torch.where(chosen, other, numbers)
        is_same = _result(call, before) == _result(call, after)
        rest = ~chosen.expand(is_same.shape)
        return bool(is_same[rest].all())
    except Exception:
        return False


def _samples(tracer: Tracer, call: Node) -> dict[Node, Any]:
    """The arguments of a function, random numbers for those that are no constants."""
    samples = {}
    for argument in call.all_input_nodes:
        value = tracer.values[argument]
        if isinstance(value, TRACED):
            value = _random(argument.meta["val"])
        samples[argument] = value
    return samples


def _result(call: Node, values: dict[Node, Any]) -> Tensor:
    """What a function gives of values, copied as it may work in place."""

    def copied(argument: Any) -> Any:
        value = values[argument] if isinstance(argument, Node) else argument
        return value.clone() if isinstance(value, Tensor) else value

    args, kwargs = tree_map(copied, (call.args, call.kwargs))
    return call.target(*args, **kwargs)  # type: ignore[operator]


def _random(like: Tensor) -> Tensor:
    """Numbers of the shape and type of a tensor, which may have no data."""
    shape = tuple(like.shape)
    if like.dtype.is_floating_point or like.dtype.is_complex:
        return torch.randn(shape, dtype=like.dtype)
    # 0 and 1, so that a bool takes both values
    return torch.randint(0, 2, shape).to(like.dtype)


KNOWN_CREATIONS = functions(
    "new_zeros new_ones new_full zeros_like ones_like full_like"
)
RANDOM_CREATIONS = functions("new_empty rand_like randn_like empty_like")


@register_rule(*KNOWN_CREATIONS, *RANDOM_CREATIONS)
def creation(
    tracer: Tracer, call: Node, like: Value, *args: Any, **kwargs: Any
) -> Value:
    """A constant of a tensor's shape.

    Random numbers are the same for all neurons, as none is singled out.
    """
    # of the input it takes the shape alone: zeros stay 0, as in equilibrium
    tracer.input_dependent.discard(call)
    (source,) = call.all_input_nodes[:1]
    dtype = source.meta["val"].dtype
    zeros = torch.zeros(tuple(like.shape), dtype=dtype)
    value = call.target(zeros, *args, **kwargs)  # type: ignore[operator]
    is_known = packet_of(call) in KNOWN_CREATIONS
    return value if is_known else torch.zeros_like(value)


@register_rule(aten.prelu)
def prelu(tracer: Tracer, call: Node, x: Value, weight: Value) -> Value:
    """A parametric activation: its slope is a feature of the neurons it is applied to."""
    if not (isinstance(x, Neurons) and isinstance(weight, Elements)):
        return pointwise_function(tracer, call, (x, weight), {})
    shape = [1] * x.labels.dim()
    # torch has channels along axis 1; a vector takes a single slope
    if x.labels.dim() > 1:
        shape[1] = weight.shape[0]
    slopes = weight.apply(lambda w: w.reshape(shape))
    return with_parameter(tracer, call, x, slopes, "slope")
