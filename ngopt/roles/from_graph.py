"""The role of each parameter in the neural graph, for optimizers that use roles."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

from torch import Tensor, nn

from ngopt.graph.build import build_graph
from ngopt.graph.groups_and_blocks import Bias, EdgeBlock, is_diagonal
from ngopt.graph.inference.from_parameters import infer_graph
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.roles.from_names import RolesFromNames
from ngopt.roles.matrices import MatrixBlock, by_shape, matrices
from ngopt.roles.neuron_usage import (
    is_dense,
    is_gated,
    made_by_weights,
    mixes_neurons,
    usage,
)
from ngopt.roles.points import tables_of_points

ROLES = ("embedding", "output", "matrix", "norm", "bias", "other")


@dataclass(frozen=True)
class ParameterRole:
    """The role of one parameter.

    Attributes:
        role: one of
            "embedding": a table whose rows are looked up, even if it is also the output
                matrix;
            "output": the last matrix before an output of the network;
            "matrix";
            "norm": scale or shift;
            "bias";
            "other": class tokens, positions added to activations, slopes, factors of
                layers, and unknown parameters.
        blocks: the matrices of an embedding, output or matrix; each element is in one
            of them. The rows of an embedding are its dimension, its columns the tokens.
        depth: of the neurons that the parameter leads to, from 0 at the inputs to 1 at
            the last output.
        reads_input: whether it is a matrix applied to the inputs of the network.
        place: number of the first group of neurons that the parameter leads to; groups
            are numbered in the order of the network. None for unused parameters, and
            for vectors of which only their shapes are known.
    """

    name: str
    role: str
    blocks: tuple[MatrixBlock, ...] = ()
    depth: float = 0.0
    reads_input: bool = False
    place: int | None = None

    @property
    def fan_in(self) -> int | None:
        """Inputs times kernel positions of a neuron; None for tables and vectors."""
        if not self.blocks or self.role == "embedding":
            return None
        return max(prod(block.view.shape[2:]) for block in self.blocks)


def check_module(function: str, model: Any) -> None:
    """Raises TypeError, in the name of a function, if `model` is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model: expected a torch.nn.Module; got {type(model).__name__}"
        )


def parameter_roles(
    model: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    example_input: Any = None,
) -> dict[str, ParameterRole]:
    """Name -> role of every parameter, in the order of the parameters.

    Raises ValueError as `build_graph` does.

    Args:
        model, example_input: As for `build_graph`. Without a module, roles follow from
            names and shapes.

    Examples:
        >>> roles = parameter_roles(model, example_input)
        >>> decayed = [p for name, p in model.named_parameters() if roles[name].blocks]
    """
    roles = roles_of(build_graph(model, example_input))
    return {role.name: role for role in roles}


def roles_of(graph: NeuralGraph) -> tuple[ParameterRole, ...]:
    """The role of every parameter of a graph, in the order of `graph.parameters`."""
    edges = _Edges(graph)
    roles = edges.roles()
    nowhere = len(graph.groups)
    # the first group of neurons that each parameter leads to
    groups = [min(edges.targets[i], default=nowhere) for i in range(len(roles))]
    if any(graph.inferred):
        _infer_roles(graph, roles, sorted(range(len(roles)), key=groups.__getitem__))
    points = tables_of_points(graph, [role.role for role in roles])
    for i, table in points.items():
        roles[i] = replace(roles[i], role="embedding", blocks=(table,))
    networks = set()  # with matrices
    for role, group in zip(roles, groups, strict=True):
        if role.blocks and group < nowhere:
            networks.add(graph.membership[group])
    placed = []
    for role, group in zip(roles, groups, strict=True):
        is_known = group < nowhere and graph.membership[group] in networks
        placed.append(replace(role, place=group if is_known else None))
    return tuple(placed)


def _infer_roles(
    graph: NeuralGraph, roles: list[ParameterRole], order: Sequence[int]
) -> None:
    """Replaces roles and matrices of parameters that are not traced.

    order: the parameters in the order of the network, which decides about outputs.
    """
    specs = [graph.parameters[i] for i in order]
    by_module = [roles[i].role for i in order]
    in_order = infer_graph([spec.unpaired for spec in specs])
    by_order = [role.role for role in _Edges(in_order).roles()]
    names = RolesFromNames(specs, by_module, by_order)
    for number, i in enumerate(order):
        if graph.inferred[i]:
            blocks = []
            for block in names.blocks(number):
                blocks.append(replace(block, view=replace(block.view, parameter=i)))
            role = names.roles[number]
            roles[i] = replace(roles[i], role=role, blocks=tuple(blocks))


def matrices_of_biases(graph: NeuralGraph, roles: Sequence[ParameterRole]) -> list[int]:
    """For each bias the index of a matrix that leads to the same neurons.

    For other parameters, and for a bias without such a matrix, their own index.
    """
    leading: dict[int, int] = {}
    for block in graph.weights:
        number = block.elements.parameter
        if roles[number].blocks:
            leading.setdefault(block.target, number)
    numbers = list(range(len(roles)))
    for bias in graph.biases:
        number = bias.view.parameter
        if roles[number].role == "bias":
            numbers[number] = leading.get(bias.group, number)
    return numbers


class _Edges:
    """The edges and biases of each parameter, the groups that these lead to, and
    properties of groups of neurons."""

    def __init__(self, graph: NeuralGraph):
        self.graph = graph
        self.usage = usage(graph)
        self.is_last = _leads_only_to_outputs(graph)
        self.normalised = _normalised(graph)
        self.made_by_weights = made_by_weights(graph)
        self.only_added = _only_added(graph, self.made_by_weights)
        self.spread: dict[int, set[int]] = {}  # targets of "spread" edges, by source
        for block in graph.blocks:
            if block.kind == "spread":
                self.spread.setdefault(block.source, set()).add(block.target)
        self.blocks: dict[int, list[EdgeBlock]] = defaultdict(list)
        self.biases: dict[int, list[Bias]] = defaultdict(list)
        self.targets: dict[int, list[int]] = defaultdict(list)
        for block in graph.weights:
            number = block.elements.parameter
            self.blocks[number].append(block)
            self.targets[number].append(block.target)
        for bias in graph.biases:
            self.biases[bias.view.parameter].append(bias)
            self.targets[bias.view.parameter].append(bias.group)

    def roles(self) -> list[ParameterRole]:
        """Roles that follow from the edges of a graph, traced or inferred."""
        return list(map(self._role, range(len(self.graph.parameters))))

    def _role(self, number: int) -> ParameterRole:
        spec, groups = self.graph.parameters[number], self.graph.groups
        if self._is_unused(number):
            if len(spec.shape) < 2:
                return ParameterRole(spec.name, "other")
            block = by_shape(number, spec.shape)
            return ParameterRole(spec.name, "matrix", (block,))
        tables = []
        dense = []
        kinds = set()
        leads_to_output = True
        for block in self.blocks[number]:
            is_norm = block.kind in ("gamma", "beta") or self._scales_norm(block)
            kinds.add("norm" if is_norm else "other")
            if groups[block.source].kind == "token":
                tables.append(block)
            if is_dense(block):
                dense.append(block)
                leads_to_output &= self.is_last[block.target]
        if tables and spec.name.endswith("bias") and len(spec.shape) == 2:
            # of experts, a row for each
            return ParameterRole(
                spec.name, "bias", depth=groups[tables[0].target].depth
            )
        if tables:
            return self._matrix(spec.name, "embedding", tables)
        if dense:
            role = "output" if leads_to_output else "matrix"
            return self._matrix(spec.name, role, dense)
        kinds.update(map(self._role_of_bias, self.biases[number]))
        if any(bias.kind == "slope" for bias in self.biases[number]):
            kinds = {"other"}  # of a function such as PReLU, though it is added, too
        role = min(kinds, key=ROLES.index)
        depth = groups[self.targets[number][0]].depth
        return ParameterRole(spec.name, role, depth=depth)

    def _is_unused(self, number: int) -> bool:
        """Whether the traced network does not use a parameter."""
        name = self.graph.parameters[number].name
        is_inferred = bool(self.graph.inferred) and self.graph.inferred[number]
        if name in self.graph.unplaced and not is_inferred:
            return True
        groups = [self.graph.groups[bias.group] for bias in self.biases[number]]
        are_unused = all(group.name == f"{name}.unused" for group in groups)
        return not self.blocks[number] and are_unused

    def _matrix(self, name: str, role: str, blocks: list[EdgeBlock]) -> ParameterRole:
        groups, reads_input = self.graph.groups, False
        for block in blocks:
            source = groups[block.source]
            reads_input |= source.role == "input" and source.kind == "neuron"
        depth = groups[blocks[0].target].depth
        # the dimension of a table is one axis, even if its neurons are used differently
        usage = None if role == "embedding" else self.usage
        matrix_blocks = matrices(self.graph, blocks, usage)
        return ParameterRole(name, role, matrix_blocks, depth, reads_input)

    def _scales_norm(self, block: EdgeBlock) -> bool:
        """Whether a block is the scale of a norm that is written with operators."""
        if block.kind != "scale" or not is_diagonal(block):
            return False
        if block.source in self.normalised:
            # with an activation between, it is another factor
            return self.graph.groups[block.source].activation is None
        # w x / |x|, computed from left to right
        into = self.graph.blocks_into(block.source)
        factors = {before.source for before in into if before.view is None}
        pooled = self.normalised.get(block.target, set())
        return not pooled.isdisjoint({block.source, *factors})

    def _role_of_bias(self, bias: Bias) -> str:
        if bias.kind in ("gamma", "beta"):
            return "norm"
        if bias.kind == "bias":
            return "bias"
        if bias.kind == "scale":
            spread = self.spread.get(bias.group)  # over several heads
            is_norm = spread is not None and spread <= self.normalised.keys()
            return "norm" if is_norm else "other"
        if bias.kind == "recurrent":  # of a GRU, or the first state of a layer
            has_gates = is_gated(self.graph, bias.group, bias.slot_shape)
            return "bias" if has_gates else "other"
        if bias.kind == "value" and bias.group in self.only_added:
            return "bias"
        if bias.kind != "shift" or bias.slot_shape:
            return "other"
        if bias.group in self.normalised:
            return "norm"
        for block in self.graph.blocks_into(bias.group):
            if block.kind == "gamma" or self._scales_norm(block):
                return "norm"
        for shifted in self.spread.get(bias.group, {bias.group}):
            is_aggregate = self.graph.groups[shifted].kind in ("product", "pool")
            if not is_aggregate and shifted not in self.made_by_weights:
                return "other"
        return "bias"  # of results of matrices, or of sums and products of these


def _only_added(graph: NeuralGraph, made_by_weights: set[int]) -> set[int]:
    """Groups without sources that are added to results of matrices, and lead nowhere
    else."""
    leads_elsewhere, is_added = set(), set()
    has_sources = {block.target for block in graph.blocks}
    for block in graph.blocks:
        if block.kind == "residual" and block.target in made_by_weights:
            is_added.add(block.source)
        else:
            leads_elsewhere.add(block.source)
    return is_added - leads_elsewhere - has_sources


def _leads_only_to_outputs(graph: NeuralGraph) -> list[bool]:
    """For every group whether it leads to an output, and to no further matrix.

    Pinned neurons, which an unknown function such as a loss reads, are outputs if no
    matrix leads to another output.
    """
    ends = [group.role == "output" for group in graph.groups]
    are_found = any(ends[b.target] and mixes_neurons(b) for b in graph.blocks)
    reaches = []
    for is_output, group in zip(ends, graph.groups, strict=True):
        is_end = is_output or (group.is_pinned and not are_found)
        reaches.append(is_end and group.kind != "position")
    mixed = [False] * len(graph.groups)
    before: tuple[list[bool], list[bool]] | None = None
    # edges against the order of blocks need one more pass each
    while before != (reaches, mixed):
        before = list(reaches), list(mixed)
        for block in reversed(graph.blocks):
            source, target = block.source, block.target
            reaches[source] = reaches[source] or reaches[target]
            mixed[source] = mixed[source] or mixed[target] or mixes_neurons(block)
    paths = zip(reaches, mixed, strict=True)
    return [is_reached and not has_matrix for is_reached, has_matrix in paths]


def _normalised(graph: NeuralGraph) -> dict[int, set[int]]:
    """Groups that norms written with operators, x / sqrt(mean(x^2)), make or read.

    Keys are groups of products of neurons and a statistic pooled from many neurons, and
    the other factors of these products, unless they are pooled themselves. Values are
    the pooled groups.
    """
    # groups with one statistic of all neurons or of each head, and what they pool
    pooled = {}
    for number, group in enumerate(graph.groups):
        sources = _sources(graph, number, ("pool",))
        if sources and (group.size == 1 or group.kind == "pool"):
            pooled[number] = sources
    pooled_by: dict[int, set[int]] = {}
    for number, group in enumerate(graph.groups):
        factors = _sources(graph, number, ("left", "right"))
        statistics = factors & pooled.keys()
        if group.kind != "product" or not statistics:
            continue
        sources = set().union(*map(pooled.__getitem__, statistics))
        others = factors - statistics
        into_sources = chain.from_iterable(map(graph.blocks_into, sources))
        if any(x.source in others and x.view is not None for x in into_sources):
            continue  # a score, the sum of neurons times learned weights
        pooled_by[number] = sources
        for factor in others - sources:
            pooled_by[factor] = sources
    return pooled_by


def _sources(graph: NeuralGraph, group: int, kinds: Sequence[str]) -> set[int]:
    """Sources of the edges of some kinds into a group."""
    into = graph.blocks_into(group)
    return {block.source for block in into if block.kind in kinds}
