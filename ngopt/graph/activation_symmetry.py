"""Symmetries by activation: changes of sign, phase and scale of neurons that leave the
function of the network as it is.

A sine neuron can be negated (its weights, its bias and its outgoing weights) or shifted
by half a period (its bias; its outgoing weights are negated). A neuron with an odd
activation can be negated. One whose activation is linear on both sides of zero can be
scaled by any positive number. Networks that differ by these symmetries alone have the
same canonical form, up to permutation.
"""

from collections.abc import Mapping, Sequence
from math import pi
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from ngopt.graph.groups_and_blocks import Index
from ngopt.graph.neural_graph import GraphValues, NeuralGraph

Symmetry = Literal["phase", "sign", "scale"]

# Activations by their names in torch.
ACTIVATIONS = """
relu relu6 hardtanh gelu silu sigmoid tanh leaky_relu elu selu celu mish softplus
hardswish hardsigmoid softmax log_softmax sin cos exp softsign glu logsigmoid rrelu
prelu
""".split()

# Functions with f(c x) = c f(x) for all c, for c = -1, for all c > 0. They may combine
# several positions of a neuron.
LINEAR = """
mul div neg mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d
upsample_bilinear2d
""".split()
ODD = "sin tanh hardshrink softshrink".split()
HOMOGENEOUS = """
relu leaky_relu abs amax amin max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d
""".split()
# Linear for given random numbers.
RANDOM = "dropout feature_dropout".split()


class Canonical(NamedTuple):
    """Networks in canonical form.

    Attributes:
        params: One tensor per parameter.
        factors: One tensor per parameter, the canonical parameters divided by the given
            ones; shifts of biases of sine neurons are left out. Updates of the
            canonical networks are updates of the given ones times these.
    """

    params: list[Tensor]
    factors: list[Tensor]


def symmetry_of(functions: Sequence[str]) -> Symmetry | None:
    """The symmetry of neurons to which a network applies all these functions; None
    where none is known.

    Neurons with "phase" have "sign" too.
    """
    nonlinear = [name for name in functions if name not in (*LINEAR, *RANDOM)]
    if nonlinear == ["sin"]:
        return "phase"
    if nonlinear and set(nonlinear) <= set(ODD):
        return "sign"
    if nonlinear and set(nonlinear) <= set(HOMOGENEOUS):
        return "scale"
    return None


def symmetries(graph: NeuralGraph) -> list[Symmetry | None]:
    """The symmetry of every group, None where none is known.

    Only hidden neurons have one. All their edges and features must be weights and
    biases that the network uses once.
    """
    # for each parameter, its elements less those of all its uses
    used = [sum(view.numel for view in views) for views in graph.views]
    unused = [spec.numel - n for spec, n in zip(graph.parameters, used, strict=True)]
    excluded = set()
    for bias in graph.biases:
        is_plain = bias.kind == "bias" and not bias.slot_shape
        if not is_plain or unused[bias.view.parameter] != 0:
            excluded.add(bias.group)
    for block in graph.blocks:
        is_plain = block.kind in ("weight", "flatten") and block.source != block.target
        if not is_plain or block.view is None or unused[block.view.parameter] != 0:
            excluded |= {block.source, block.target}
    by_group: list[Symmetry | None] = []
    for number, group in enumerate(graph.groups):
        if group.kind != "neuron" or group.is_fixed or number in excluded:
            by_group.append(None)
        else:
            by_group.append(cast(Symmetry | None, group.symmetry))
    return by_group


def canonical(
    graph: NeuralGraph,
    params: Sequence[Tensor] | Mapping[str, Tensor],
    frequency: float = 1.0,
    batch_dims: int = 0,
) -> Canonical:
    """The canonical form: sine neurons have phases within [0, pi / 2], neurons with an
    odd activation no negative biases, neurons with a scale incoming weights of norm 1.

    Args:
        params: One tensor per parameter, `(*batch, *shape)`, in order or by name.
        frequency: Sine neurons compute sin(frequency * x), where x includes the bias.
    """
    real = graph.as_real(params, batch_dims)
    values = graph.gather(real, batch_dims)
    ones = graph.gather([torch.ones_like(p) for p in real], batch_dims)
    known = symmetries(graph)
    numbers = range(len(graph.groups))
    for number in sorted(numbers, key=lambda i: graph.groups[i].depth):
        symmetry = known[number]
        if symmetry is None:
            continue
        neurons = _Neurons(graph, number, batch_dims)
        if symmetry == "phase":
            values, incoming, outgoing = neurons.shifted(values, frequency)
        elif symmetry == "sign":
            incoming = outgoing = _signs(neurons.bias(values))
        else:
            outgoing = neurons.norms(values)
            incoming = 1 / outgoing
        values = neurons.multiplied(values, incoming, outgoing)
        ones = neurons.multiplied(ones, incoming, outgoing)
    return Canonical(graph.scatter(values, batch_dims), graph.scatter(ones, batch_dims))


class _Neurons(NamedTuple):
    """One group of a graph, in stacked networks with `batch_dims` batch axes."""

    graph: NeuralGraph
    number: int
    batch_dims: int

    @property
    def size(self) -> int:
        return self.graph.groups[self.number].size

    def bias(self, values: GraphValues) -> Tensor:
        """The sum of the biases of each neuron, (*batch, n)."""
        like = (*values.biases, *values.edges)[0]
        total = like.new_zeros(*like.shape[: self.batch_dims], self.size)
        for bias, value in zip(self.graph.biases, values.biases, strict=True):
            if bias.group == self.number:
                total = total + _placed(value.squeeze(-1), bias.index, self.size)
        return total

    def norms(self, values: GraphValues) -> Tensor:
        """Norms of the bias and incoming weights of each neuron, (*batch, n); 1 where
        these are 0."""
        total = self.bias(values).square()
        for block, edges in zip(self.graph.weights, values.edges, strict=True):
            if block.target == self.number:
                # (*batch, groups * n_target)
                squares = edges.square().sum((-2, -1)).flatten(-2)
                total = total + _placed(squares, block.target_index, self.size)
        return torch.where(total > 0, total, 1).sqrt()

    def shifted(
        self, values: GraphValues, frequency: float
    ) -> tuple[GraphValues, Tensor, Tensor]:
        """Values with biases of sine neurons shifted by half periods towards zero, and
        the signs for incoming and outgoing weights, (*batch, n)."""
        bias = self.bias(values)
        half_periods = (bias.detach() * frequency / pi).round()
        left = shift = half_periods * (pi / frequency)
        biases = list(values.biases)
        for i, entry in enumerate(self.graph.biases):
            # of several biases of a neuron the first is shifted
            if entry.group == self.number:
                part = _picked(left, entry.index)
                biases[i] = biases[i] - part.unsqueeze(-1)
                left = left - _placed(part, entry.index, self.size)
        incoming = _signs(bias - shift)
        flips = 1 - 2 * (half_periods % 2)
        return values._replace(biases=tuple(biases)), incoming, incoming * flips

    def multiplied(
        self, values: GraphValues, incoming: Tensor, outgoing: Tensor
    ) -> GraphValues:
        """Biases and incoming weights times `incoming`, and outgoing weights times
        `outgoing`, factors (*batch, n)."""
        biases = list(values.biases)
        for i, bias in enumerate(self.graph.biases):
            if bias.group == self.number:
                biases[i] = biases[i] * _picked(incoming, bias.index).unsqueeze(-1)
        edges = list(values.edges)
        for i, block in enumerate(self.graph.weights):
            groups, targets, sources = block.shape
            if block.target == self.number:
                factor = _picked(incoming, block.target_index)
                edges[i] = edges[i] * factor.unflatten(-1, (groups, targets, 1, 1))
            if block.source == self.number:
                factor = _picked(outgoing, block.source_index)
                edges[i] = edges[i] * factor.unflatten(-1, (groups, 1, sources, 1))
        return GraphValues(tuple(biases), tuple(edges))


def _signs(bias: Tensor) -> Tensor:
    """Signs that make biases positive."""
    return torch.where(bias < 0, -1.0, 1.0).to(bias)


def _picked(factors: Tensor, index: Index) -> Tensor:
    return factors if index is None else factors[..., list(index)]


def _placed(values: Tensor, index: Index, size: int) -> Tensor:
    """Values of some neurons as those of a group of that size, 0 for the others."""
    if index is None:
        return values
    empty = values.new_zeros(*values.shape[:-1], size)
    return empty.index_add(-1, torch.tensor(index, device=values.device), values)
