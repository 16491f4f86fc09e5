"""Functions without weights that work entry by entry, and sums and products.

A function that is the same for all neurons adds nothing to the graph. The graph must
contain whatever distinguishes neurons: other neurons, a parameter, a constant that
differs between them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.rules.bare_parameters import with_parameter
from ngopt.graph.rules.constants import (
    differs_between_neurons,
    only_computes,
    tell_apart_by_constant,
)
from ngopt.graph.rules.neuron_pairs import difference_of, product_of, sum_of
from ngopt.graph.rules.registry import Rule, aten, register_layer_rule
from ngopt.graph.tracing.capture import packet_of
from ngopt.graph.tracing.tracer import AppliedFunction, Tracer
from ngopt.graph.tracing.values import (
    TRACED,
    Elements,
    Neurons,
    Unknown,
    Value,
    has_any,
    has_one_value,
    nodes_among,
)


# other overloads of max and min reduce one tensor
@register_layer_rule(aten.max.other, aten.min.other)
def pointwise_function(tracer: Tracer, call: Node, *args: Any, **kwargs: Any) -> Value:
    """A function without a rule of its own.

    If it works entry by entry, its result is represented as its operand.
    """
    value = call.meta.get("val")
    if not isinstance(value, Tensor):
        return tracer.unknown(call)
    leaves = tree_leaves((args, kwargs))
    operands = [leaf for leaf in leaves if isinstance(leaf, (*TRACED, Tensor))]
    fitting = [x for x in operands if _fits(x, value.shape)]
    if has_any(operands, Neurons):
        return _of_neurons(tracer, call, operands, fitting)
    if has_any(fitting, Elements):
        return _of_elements(tracer, call, fitting)
    if fitting:
        return Unknown(value.shape, equivariant=all(map(_is_uniform, fitting)))
    return tracer.unknown(call)


def _fits(value: Value, shape: torch.Size) -> bool:
    """Whether a tensor broadcasts to a shape."""
    try:
        return torch.broadcast_shapes(value.shape, shape) == shape
    except RuntimeError:
        return False


def _of_neurons(
    tracer: Tracer, call: Node, operands: Sequence[Value], fitting: Sequence[Value]
) -> Value:
    """Several neurons are factors; parameters and constants are combined one by one.

    fitting: the operands that broadcast to the result.
    """
    shape = tracer.shape_of(call)
    neurons = [x for x in operands if isinstance(x, Neurons)]
    all_fit = all(_fits(x, shape) for x in neurons)
    result, *factors = neurons
    if not all_fit or not all(is_pointwise(tracer, call, x) for x in neurons):
        return tracer.unknown(call)
    for factor in factors:
        result = product_of(tracer, call, result, factor)
    result = Neurons(result.labels.expand(shape))
    for other in fitting:
        if isinstance(other, Elements):
            result = with_parameter(tracer, call, result, other, "slope")
        elif isinstance(other, Tensor):
            tell_apart_by_constant(tracer, result, other)
        elif isinstance(other, Unknown):
            # dense, as it may differ everywhere: stride 0 means that it repeats
            layout = torch.empty(other.shape) if other.layout is None else other.layout
            if differs_between_neurons(result.labels, layout):
                tracer.pin(result.labels)
    note_function(tracer, call, result.labels)
    return result


def note_function(tracer: Tracer, call: Node, labels: Tensor) -> None:
    """Records that a function was applied to neurons, with a key of the function, its
    numbers and its options."""
    # noise is new at every call, and the same for all neurons
    is_random = torch.Tag.nondeterministic_seeded in tags_of(call)
    traced = []  # arguments that are more than a number, the same for all neurons
    numbers = []
    for k, argument in enumerate(call.args):
        is_node = isinstance(argument, Node)
        value: Value = tracer.values[argument] if is_node else argument
        is_uniform = isinstance(value, Tensor) and _is_uniform(value)
        if isinstance(value, (*TRACED, Tensor)) and not is_uniform:
            traced.append(k)
        elif not is_random:
            # any entry of a uniform tensor does
            is_tensor = isinstance(value, Tensor)
            numbers.append(float(value.flatten()[0]) if is_tensor else value)
    key = None if is_random else str((call.target, numbers, call.kwargs))
    *_, name = str(packet_of(call)).split(".")
    name = name.rstrip("_")  # relu_ is relu
    if traced != [0]:
        name = f"{name} of several"
    tracer.applied_functions.append(AppliedFunction(nodes_among(labels), name, key))


def _of_elements(tracer: Tracer, call: Node, operands: Sequence[Value]) -> Elements:
    """A parameter times or plus others, constants, and results of such functions."""
    shape = tracer.shape_of(call)
    given = [x for x in operands if isinstance(x, Elements)]
    given.sort(key=lambda x: -x.shape.numel())
    largest_first = [x.apply(lambda y: y.broadcast_to(shape)) for x in given]
    first = largest_first[0]
    again = [x for x in largest_first[1:] if x.parameter == first.parameter]
    others = [x for x in largest_first if x.parameter != first.parameter]
    # whether exchanged rows of the parameter are exchanged in the result: to a part of
    # it other functions may be applied than to the rest; in W + W.T an element is added
    # to another one of its own parameter
    is_equivariant = (
        first.shape.numel() >= tracer.parameters[first.parameter].numel
        and torch.Tag.pointwise in tags_of(call)
        and all(torch.equal(use.numbers, first.numbers) for use in again)
        and all(_is_uniform(x) for x in operands if not isinstance(x, Elements))
    )
    if not is_equivariant:
        tracer.pinned_parameters.add(first.parameter)
    return first.with_factors(others)


def _is_uniform(other: Any) -> bool:
    """Whether it stays the same or moves along if rows are exchanged."""
    if other.shape.numel() <= 1:
        return True
    if isinstance(other, Tensor):
        return has_one_value(other)
    return other.equivariant


@register_layer_rule(aten.prelu)
def prelu(tracer: Tracer, call: Node, x: Value, weight: Value) -> Value:
    """The slope is a feature of the neurons."""
    if not (isinstance(x, Neurons) and isinstance(weight, Elements)):
        return pointwise_function(tracer, call, x, weight)
    shape = [1] * x.labels.dim()
    # torch has channels along axis 1; a vector takes a single slope
    if x.labels.dim() > 1:
        shape[1] = weight.shape[0]
    slopes = weight.apply(lambda w: w.reshape(shape))
    return with_parameter(tracer, call, x, slopes, "slope")


@register_layer_rule(aten.add, aten.add_)
def addition(
    tracer: Tracer, call: Node, a: Value, b: Value, *, alpha: Any = 1
) -> Value:
    """A residual connection, a positional parameter, or a shift by a constant."""
    # alpha scales b alone, so that a and b cannot be exchanged
    rule = sum_of if alpha == 1 else difference_of
    return _binary_function(tracer, call, (a, b), rule, "shift")


@register_layer_rule(aten.sub, aten.sub_)
def subtraction(tracer: Tracer, call: Node, a: Value, b: Value, **_) -> Value:
    return _binary_function(tracer, call, (a, b), difference_of, "shift")


@register_layer_rule(aten.mul, aten.mul_, aten.div, aten.div_)
def multiplication(tracer: Tracer, call: Node, a: Value, b: Value, **_) -> Value:
    """A gate (a product of neurons), a scale (edges from one to one) or a constant."""
    follows_norm = any(isinstance(x, Neurons) and x.is_normalised for x in (a, b))
    kind = "gamma" if follows_norm else "scale"
    return _binary_function(tracer, call, (a, b), product_of, kind)


@register_layer_rule(aten.glu)
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
    return pointwise_function(tracer, call, a, b)


def tags_of(call: Node) -> Sequence[torch.Tag]:
    return getattr(call.target, "tags", ())


def is_declared_pointwise(call: Node) -> bool:
    """Whether torch declares that a function works entry by entry, or at random."""
    tags = tags_of(call)
    return torch.Tag.pointwise in tags or torch.Tag.nondeterministic_seeded in tags


def is_pointwise(tracer: Tracer, call: Node, x: Neurons) -> bool:
    """Whether each neuron of the result depends on the same neuron of x alone.

    A function that torch does not declare pointwise is tried on random numbers.
    """
    if is_declared_pointwise(call):
        return True
    labels = tracer.nodes.find(x.labels)
    # both ends: a running sum shows at the first neuron, a flipped one at the last
    first, last = labels.aminmax()
    if not _changes_only(tracer, call, x, labels == first):
        return False
    return _changes_only(tracer, call, x, labels == last)


def _changes_only(tracer: Tracer, call: Node, x: Neurons, chosen: Tensor) -> bool:
    """Whether other numbers at some entries change the result at these alone."""
    # one neuron at all places: there are no others
    if chosen.all():
        return True
    if not only_computes(call.target):
        return False
    try:
        # the arguments: constants, and random numbers for others
        before = {}
        for argument in call.all_input_nodes:
            value = tracer.values[argument]
            is_traced = isinstance(value, TRACED)
            before[argument] = _random(argument.meta["val"]) if is_traced else value
        after = dict(before)
        for argument, numbers in before.items():
            if tracer.values[argument] is x:
                after[argument] = torch.where(chosen, _random(numbers), numbers)
        is_same = _result(call, before) == _result(call, after)
        return bool(is_same[~chosen.expand(is_same.shape)].all())
    except Exception:
        return False


def _result(call: Node, values: dict[Node, Any]) -> Tensor:
    """The result of a function of copies, as it may work in place."""

    def copied(argument: Any) -> Any:
        value = values[argument] if isinstance(argument, Node) else argument
        return value.clone() if isinstance(value, Tensor) else value

    function: Any = call.target
    args, kwargs = tree_map(copied, (call.args, call.kwargs))
    return function(*args, **kwargs)


def _random(like: Tensor) -> Tensor:
    """Random numbers of the shape and type of a tensor, which may have no data."""
    shape = tuple(like.shape)
    if like.dtype.is_floating_point or like.dtype.is_complex:
        return torch.randn(shape, dtype=like.dtype)
    # 0 and 1, so that a bool takes both values
    return torch.randint(0, 2, shape).to(like.dtype)
