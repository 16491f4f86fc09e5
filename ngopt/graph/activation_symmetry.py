"""What activations add to permutations: signs,
phases and scales of neurons that change no function.

A sine neuron may be negated (its weights, its bias and what leaves it) or shifted by
half a period (its bias, and what leaves it negated); an odd one negated; one that is
linear on both sides of zero scaled by any positive number. A canonical form takes one
network of each such family: what is the same function up to these symmetries has the
same parameters then, up to permutation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import Bias, EdgeBlock, Index
from ngopt.graph.neural_graph import GraphValues, NeuralGraph

Symmetry = Literal["phase", "sign", "scale"]

# Functions that networks apply to single neurons, as torch names them.
ACTIVATIONS = """
relu relu6 hardtanh gelu silu sigmoid tanh leaky_relu elu selu celu mish softplus hardswish
hardsigmoid softmax log_softmax sin cos exp softsign glu logsigmoid rrelu prelu
""".split()

# f(c x) = c f(x) for all c, for c = -1, for all c > 0; what joins positions of a neuron
# among them.
LINEAR = """
mul div neg mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
""".split()

ODD = "sin tanh hardshrink softshrink".split()

HOMOGENEOUS = """
relu leaky_relu abs amax amin max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d
""".split()

# At random, and linear for given random numbers.
RANDOM = "dropout feature_dropout".split()


class Canonical(NamedTuple):
    """Networks in canonical form.

    params: one tensor a parameter. factors: of these to those they were made of, biases
    of sine neurons but for a shift; updates of one are updates of the other times
    these.
    """

    params: list[Tensor]
    factors: list[Tensor]


def allowed(functions: Sequence[str]) -> Symmetry | None:
    """How neurons may be changed that go through all these functions and are undone by
    the next weights.

    "phase" and "sign", "sign" alone, or "scale" (see `activation_symmetry`);
    None where nothing is known.
    """
    curved = [name for name in functions if name not in (*LINEAR, *RANDOM)]
    if curved == ["sin"]:
        return "phase"
    if curved and all(name in ODD for name in curved):
        return "sign"
    if curved and all(name in HOMOGENEOUS for name in curved):
        return "scale"
    return None


def symmetries(graph: NeuralGraph) -> list[Symmetry | None]:
    """Of every group, what the functions applied to it allow;
    None where nothing is known to be allowed.

    Neurons must be hidden, and what reaches and leaves them weights and biases, each
    used once.
    """
    free = [spec.numel for spec in graph.parameters]
    places: list[Bias | EdgeBlock] = [*graph.biases, *graph.weights]
    for place in places:
        assert place.view is not None
        free[place.view.parameter] -= place.view.numel
    found = []
    for number, group in enumerate(graph.groups):
        is_plain = group.kind == "neuron" and not group.is_fixed
        own = [bias for bias in graph.biases if bias.group == number]
        around = [
            block for block in graph.blocks if number in (block.source, block.target)
        ]
        is_plain &= all(bias.kind == "bias" and not bias.slot_shape for bias in own)
        is_plain &= all(
            block.kind in ("weight", "flatten") and block.source != block.target
            for block in around
        )
        views = [place.view for place in (*own, *around)]
        is_plain &= all(
            view is not None and free[view.parameter] == 0 for view in views
        )
        found.append(cast(Symmetry | None, group.symmetry) if is_plain else None)
    return found


def canonical(
    graph: NeuralGraph,
    params: Sequence[Tensor],
    frequency: float = 1.0,
    batch_dims: int = 0,
) -> Canonical:
    """The canonical form: phases of sine neurons within [0, pi / 2], biases of odd ones
    not negative, norms of what reaches a neuron with a scale 1.

    params: one tensor a parameter, (*batch, *shape). frequency: sine neurons compute
        sin(frequency * x), x being what reaches them with their bias.
    """
    values = graph.gather(params, batch_dims)
    ones = graph.gather([torch.ones_like(p) for p in params], batch_dims)
    order = sorted(
        range(len(graph.groups)), key=lambda number: graph.groups[number].depth
    )
    known = symmetries(graph)
    for number in order:
        kind = known[number]
        if kind is None:
            continue
        if kind == "phase":
            values, inward, outward = _shifted(
                graph, values, number, frequency, batch_dims
            )
        elif kind == "sign":
            inward = outward = _positive(_bias_of(graph, values, number, batch_dims))
        else:
            outward = _norms(graph, values, number, batch_dims)
            inward = 1 / outward
        values = _multiplied(graph, values, number, inward, outward, batch_dims)
        ones = _multiplied(graph, ones, number, inward, outward, batch_dims)
    return Canonical(graph.scatter(values, batch_dims), graph.scatter(ones, batch_dims))


def _shifted(
    graph: NeuralGraph,
    values: GraphValues,
    number: int,
    frequency: float,
    batch_dims: int,
) -> tuple[GraphValues, Tensor, Tensor]:
    """Biases of sine neurons moved by half periods to the one nearest to zero,
    and the signs that remain."""
    bias = _bias_of(graph, values, number, batch_dims)
    periods = (bias.detach() * frequency / pi).round()
    left = shift = periods * (pi / frequency)
    for place, own in enumerate(graph.biases):
        # of several biases of a neuron the first is moved
        if own.group == number:
            part = _picked(left, own.index)
            moved = values.biases[place] - part.unsqueeze(-1)
            values = values._replace(biases=_with(values.biases, place, moved))
            left = left - _placed(part, own.index, left.shape[-1])
    inward = _positive(bias - shift)
    flips = 1 - 2 * (periods % 2)
    return values, inward, inward * flips


def _positive(bias: Tensor) -> Tensor:
    """Signs that make biases positive."""
    return torch.where(bias < 0, -1.0, 1.0).to(bias)


def _bias_of(
    graph: NeuralGraph, values: GraphValues, number: int, batch_dims: int
) -> Tensor:
    """The biases of a group, (*batch, n), all together; zeros without any."""
    like = (*values.biases, *values.edges)[0]
    total = like.new_zeros(*like.shape[:batch_dims], graph.groups[number].size)
    for bias, value in zip(graph.biases, values.biases, strict=True):
        if bias.group == number:
            total = total + _placed(value.squeeze(-1), bias.index, total.shape[-1])
    return total


def _norms(
    graph: NeuralGraph, values: GraphValues, number: int, batch_dims: int
) -> Tensor:
    """Norms of all that reaches each neuron of a group, (*batch, n); 1 where nothing
    does."""
    total = _bias_of(graph, values, number, batch_dims).square()
    for block, edges in zip(graph.weights, values.edges, strict=True):
        if block.target == number:
            own = edges.square().sum((-2, -1)).flatten(-2)
            total = total + _placed(own, block.target_index, total.shape[-1])
    return torch.where(total > 0, total, 1).sqrt()


def _multiplied(
    graph: NeuralGraph,
    values: GraphValues,
    number: int,
    inward: Tensor,
    outward: Tensor,
    batch_dims: int,
) -> GraphValues:
    """What reaches the neurons of a group and what leaves them, times factors (*batch,
    n)."""
    biases = list(values.biases)
    edges = list(values.edges)
    for place, bias in enumerate(graph.biases):
        if bias.group == number:
            factor = _picked(inward, bias.index).unsqueeze(-1)
            biases[place] = biases[place] * factor
    for place, block in enumerate(graph.weights):
        groups, targets, sources = block.shape
        if block.target == number:
            factor = _picked(inward, block.target_index).unflatten(
                -1, (groups, targets, 1, 1)
            )
            edges[place] = edges[place] * factor
        if block.source == number:
            factor = _picked(outward, block.source_index).unflatten(
                -1, (groups, 1, sources, 1)
            )
            edges[place] = edges[place] * factor
    return GraphValues(tuple(biases), tuple(edges))


def _picked(factors: Tensor, index: Index) -> Tensor:
    return factors if index is None else factors[..., list(index)]


def _placed(values: Tensor, index: Index, size: int) -> Tensor:
    if index is None:
        return values
    empty = values.new_zeros(*values.shape[:-1], size)
    return empty.index_add(-1, torch.tensor(index, device=values.device), values)


def _with(values: tuple[Tensor, ...], place: int, value: Tensor) -> tuple[Tensor, ...]:
    return (*values[:place], value, *values[place + 1 :])
