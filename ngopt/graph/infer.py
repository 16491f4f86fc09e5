"""The neural graph from parameters alone: shapes and order decide what connects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ngopt.graph.core import NeuralGraph, ParameterSpec
from ngopt.graph.topology import GraphBuilder, whole


def infer_graph(parameters: Sequence[ParameterSpec]) -> NeuralGraph:
    """Chains weights whose input size fits the previous layer; whatever does not fit stays a component.

    A weight (n_out, n_in, *kernel) connects to the group of the weight before it when n_in is that
    group's size, or, for a matrix, a multiple of it (a flattened feature map, channels first). A
    vector of the last group's size is its bias. A wrong edge is worse than none, so a run of square
    matrices in which layers cannot be told from attention projections is left unconnected.
    """
    builder = GraphBuilder(parameters)
    uncertain = _uncertain(parameters)
    last: int | None = None
    for i, spec in enumerate(parameters):
        if len(spec.shape) < 2:
            if last is not None and spec.shape == (builder.groups[last].size,) and not builder.has_bias(last):
                builder.add_bias(whole(i, spec.shape), last)
            else:
                builder.add_component(i)
            continue
        slot_shape = None if last is None or i in uncertain else _slots(spec, builder.groups[last].size)
        if last is None or slot_shape is None:
            last = builder.add_component(i)
        else:
            last = builder.add_weight(i, last, slot_shape)
    return builder.build()


def _slots(spec: ParameterSpec, size: int) -> tuple[int, ...] | None:
    """Slot shape with which a weight connects to a group of `size` neurons, None if it does not."""
    inputs, kernel = spec.shape[1], spec.shape[2:]
    if inputs == size:
        return kernel
    if not kernel and inputs > size > 1 and inputs % size == 0:
        return (inputs // size,)
    return None


def _uncertain(parameters: Sequence[ParameterSpec]) -> set[int]:
    """Square matrices that may be parallel projections: positions of those not to connect to their predecessor.

    In a list that is a plain chain from its first, non-square weight on, square matrices are layers.
    Anywhere else two or more in a row could be query, key, value and output projections.
    """
    weights = [(i, spec.shape) for i, spec in enumerate(parameters) if len(spec.shape) >= 2]
    if _is_plain_chain(parameters, [shape for _, shape in weights]):
        return set()
    square = [len(shape) == 2 and shape[0] == shape[1] for _, shape in weights]
    return {
        i
        for k, (i, shape) in enumerate(weights)
        if square[k]
        and ((k > 0 and weights[k - 1][1] == shape) or (k + 1 < len(weights) and weights[k + 1][1] == shape))
    }


def _is_plain_chain(parameters: Sequence[ParameterSpec], weights: Sequence[tuple[int, ...]]) -> bool:
    if not weights or weights[0][0] == weights[0][1]:
        return False
    chained = all(_slots(ParameterSpec("", shape), before[0]) is not None for before, shape in pairwise(weights))
    vectors = len(parameters) - len(weights)
    return chained and vectors <= len(weights)
