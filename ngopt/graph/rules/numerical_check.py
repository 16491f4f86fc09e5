"""Whether a function works entry by entry, tried on random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import TRACED, Neurons


def tags_of(call: Node) -> Sequence[torch.Tag]:
    """The tags that torch gives a function."""
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
    """The arguments of a function: constants, and random numbers for others."""
    samples = {}
    for argument in call.all_input_nodes:
        value = tracer.values[argument]
        if isinstance(value, TRACED):
            value = _random(argument.meta["val"])
        samples[argument] = value
    return samples


def _result(call: Node, values: dict[Node, Any]) -> Tensor:
    """The result of a function of copies, as it may work in place."""

    def copied(argument: Any) -> Any:
        value = values[argument] if isinstance(argument, Node) else argument
        return value.clone() if isinstance(value, Tensor) else value

    args, kwargs = tree_map(copied, (call.args, call.kwargs))
    function: Any = call.target
    return function(*args, **kwargs)


def _random(like: Tensor) -> Tensor:
    """Random numbers of the shape and type of a tensor, which may have no data."""
    shape = tuple(like.shape)
    if like.dtype.is_floating_point or like.dtype.is_complex:
        return torch.randn(shape, dtype=like.dtype)
    # 0 and 1, so that a bool takes both values
    return torch.randint(0, 2, shape).to(like.dtype)
