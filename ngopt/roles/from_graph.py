"""What the graph says each parameter is, for any optimizer that treats them
differently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from torch import Tensor, nn

from ngopt.graph import Bias, EdgeBlock, NeuralGraph, build_graph
from ngopt.graph.groups_and_blocks import is_diagonal
from ngopt.graph.inference.from_parameters import infer_graph
from ngopt.roles.from_names import Names
from ngopt.roles.matrices import MatrixBlock, NeuronSet, by_shape, matrices
from ngopt.roles.neuron_usage import is_dense, mixes_neurons, usage

__all__ = [
    "MatrixBlock",
    "NeuronSet",
    "ParameterRole",
    "parameter_roles",
    "roles_of",
]

ROLES = ("embedding", "output", "matrix", "norm", "bias", "other")


@dataclass(frozen=True)
class ParameterRole:
    """What one parameter is.

    role: "embedding" (a table of which rows are looked up, also where it makes the
    output too),
        "output" (the last matrix before an output of the network), "matrix", "norm"
        (scale or shift), "bias", or "other" (class tokens, positions added to
        activations, slopes, factors of layers, whatever nothing is known of).
    blocks: of an embedding, output or matrix, its matrices; every element is in one of
    them, once.
        An embedding's rows are its dimension, its columns the tokens.
    depth: of the neurons that the parameter leads to, 0 at the inputs and 1 at the last
    output.
    reads_input: whether it is a matrix that is applied to the network's own inputs.
    """

    name: str
    role: str
    blocks: tuple[MatrixBlock, ...] = ()
    depth: float = 0.0
    reads_input: bool = False

    @property
    def fan_in(self) -> int | None:
        """Inputs times kernel positions of a neuron; None for tables and what is no
        matrix."""
        if not self.blocks or self.role == "embedding":
            return None
        return max(prod(block.view.shape[2:]) for block in self.blocks)


def parameter_roles(
    model: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    example_input: Any = None,
) -> dict[str, ParameterRole]:
    """Name -> role of every parameter, in the order of the parameters.

    model, example_input: as for `build_graph`; of parameters alone, names and shapes
    decide.

    Raises ValueError as `build_graph` does.

    >>> roles = parameter_roles(model, example_input)
    >>> decayed = [p for name, p in model.named_parameters() if roles[name].blocks]
    """
    return {role.name: role for role in roles_of(build_graph(model, example_input))}


def roles_of(graph: NeuralGraph) -> tuple[ParameterRole, ...]:
    """The role of every parameter of a graph, in the order of `graph.parameters`."""
    roles = _stated(graph)
    inferred = [
        number for number, is_inferred in enumerate(graph.inferred) if is_inferred
    ]
    if inferred:
        in_order = _stated(infer_graph([spec.unpaired for spec in graph.parameters]))
        guesses = [
            (role.role, other.role) for role, other in zip(roles, in_order, strict=True)
        ]
        names = Names(graph.parameters, guesses)
        for i in inferred:
            roles[i] = replace(roles[i], role=names.roles[i], blocks=names.blocks(i))
    return tuple(roles)


def matrices_of_biases(graph: NeuralGraph, roles: Sequence[ParameterRole]) -> list[int]:
    """Of every bias the number of a matrix that leads to the same neurons; of others,
    and of a bias without one, their own."""
    leading: dict[int, int] = {}
    for block in graph.weights:
        if block.view is not None and roles[block.view.parameter].blocks:
            leading.setdefault(block.target, block.view.parameter)
    found = list(range(len(roles)))
    for bias in graph.biases:
        number = bias.view.parameter
        if roles[number].role == "bias":
            found[number] = leading.get(bias.group, number)
    return found


def _stated(graph: NeuralGraph) -> list[ParameterRole]:
    """The roles that follow from what a graph says, wherever it has that from."""
    facts = _Facts(graph)
    return [facts.role(number) for number in range(len(graph.parameters))]


class _Facts:
    """What a graph says, collected once for all parameters."""

    def __init__(self, graph: NeuralGraph):
        self.graph = graph
        self.usage = usage(graph)
        self.last = _leads_only_to_outputs(graph)
        self.normalised = _normalised(graph)
        self.made_by_weights = {b.target for b in graph.blocks if mixes_neurons(b)}
        # what the nodes of each group meet as they are
        self.spread: dict[int, set[int]] = {}
        for block in graph.blocks:
            if block.kind == "spread":
                self.spread.setdefault(block.source, set()).add(block.target)
        self.blocks: list[list[EdgeBlock]] = [[] for _ in graph.parameters]
        self.biases: list[list[Bias]] = [[] for _ in graph.parameters]
        for block in graph.weights:
            assert block.view is not None
            self.blocks[block.view.parameter].append(block)
        for bias in graph.biases:
            self.biases[bias.view.parameter].append(bias)

    def role(self, number: int) -> ParameterRole:
        spec, groups = self.graph.parameters[number], self.graph.groups
        blocks = self.blocks[number]
        biases = self.biases[number]
        tables = [block for block in blocks if groups[block.source].kind == "token"]
        dense = [block for block in blocks if is_dense(block)]
        if self._is_unused(number):
            is_matrix = len(spec.shape) > 1
            matrix = (by_shape(number, spec.shape),) if is_matrix else ()
            return ParameterRole(spec.name, "matrix" if is_matrix else "other", matrix)
        if tables:
            return self._of_matrix(spec.name, "embedding", tables, None)
        if dense:
            is_last = all(self.last[block.target] for block in dense)
            return self._of_matrix(
                spec.name, "output" if is_last else "matrix", dense, self.usage
            )
        kinds = {self._of_block(block) for block in blocks}
        kinds |= {self._of_bias(bias) for bias in biases}
        role = next(role for role in ROLES if role in kinds)
        ends = [block.target for block in blocks] + [bias.group for bias in biases]
        return ParameterRole(spec.name, role, depth=groups[ends[0]].depth)

    def _is_unused(self, number: int) -> bool:
        """Whether the network does nothing with a parameter of which a trace would
        know."""
        name = self.graph.parameters[number].name
        is_inferred = bool(self.graph.inferred) and self.graph.inferred[number]
        if name in self.graph.unplaced and not is_inferred:
            return True
        ends = [self.graph.groups[bias.group].name for bias in self.biases[number]]
        return not self.blocks[number] and set(ends) <= {f"{name}.unused"}

    def _of_matrix(
        self,
        name: str,
        role: str,
        blocks: Sequence[EdgeBlock],
        usage: list[np.ndarray] | None,
    ) -> ParameterRole:
        groups = self.graph.groups
        sources = [groups[block.source] for block in blocks]
        reads_input = any(s.role == "input" and s.kind == "neuron" for s in sources)
        depth = groups[blocks[0].target].depth
        found = matrices(self.graph, blocks, usage)
        return ParameterRole(name, role, found, depth, reads_input)

    def _of_block(self, block: EdgeBlock) -> str:
        is_norm = block.kind in ("gamma", "beta") or self._scales_norm(block)
        return "norm" if is_norm else "other"

    def _scales_norm(self, block: EdgeBlock) -> bool:
        """Whether a block is the scale of a norm that someone wrote by hand."""
        if block.kind != "scale" or not is_diagonal(block):
            return False
        if block.source in self.normalised:
            # else it comes later
            return self.graph.groups[block.source].activation is None
        # for w x / |x|, where w x comes first
        pooled = self.normalised.get(block.target, set())
        before = {
            b.source for b in self.graph.blocks_into(block.source) if b.view is None
        }
        return not pooled.isdisjoint({block.source} | before)

    def _of_bias(self, bias: Bias) -> str:
        if bias.kind in ("gamma", "beta"):
            return "norm"
        met = self.spread.get(bias.group, set())
        if bias.kind == "scale" and met and met <= self.normalised.keys():
            return "norm"  # of several heads
        incoming = self.graph.blocks_into(bias.group)
        if bias.kind == "bias":
            return "bias"
        # of a GRU, or a state that a layer begins with
        if bias.kind == "recurrent":
            gated = [
                b for b in incoming if b.kind == "recurrent" and b.view is not None
            ]
            return (
                "bias"
                if any(b.slot_shape == bias.slot_shape for b in gated)
                else "other"
            )
        if bias.kind == "shift" and not bias.slot_shape:
            if bias.group in self.normalised:
                return "norm"
            if any(b.kind == "gamma" or self._scales_norm(b) for b in incoming):
                return "norm"
            return "bias" if bias.group in self.made_by_weights else "other"
        return "other"


def _leads_only_to_outputs(graph: NeuralGraph) -> list[bool]:
    """For every group whether it leads to an output of the network, and to no further
    matrix.

    Pinned neurons are outputs here, too: a function that no rule knows, as a loss,
    reads them.
    """
    count = len(graph.groups)
    ends = [group.role == "output" or group.is_pinned for group in graph.groups]
    outputs = [
        is_end and group.kind != "position"
        for is_end, group in zip(ends, graph.groups, strict=True)
    ]
    reaches = list(outputs)
    mixed = [False] * count
    before: tuple[list[bool], list[bool]] | None = None
    # once more for each way back against the order of blocks
    while before != (reaches, mixed):
        before = list(reaches), list(mixed)
        for block in reversed(graph.blocks):
            source, target = block.source, block.target
            reaches[source] = reaches[source] or reaches[target]
            mixed[source] = mixed[source] or mixed[target] or mixes_neurons(block)
    return [reached and not more for reached, more in zip(reaches, mixed, strict=True)]


def _normalised(graph: NeuralGraph) -> dict[int, set[int]]:
    """What norms that someone wrote by hand make, as x / sqrt(mean(x^2)), and are
    applied to.

    Keys are groups of products of neurons with one that pools many; also these neurons,
    if they are not themselves those that are pooled. The values are the groups that are
    pooled.
    """
    pooled = {}
    for number, group in enumerate(graph.groups):
        sources = {b.source for b in graph.blocks_into(number) if b.kind == "pool"}
        # one of all neurons, or one of each head
        if sources and (group.size == 1 or group.kind == "pool"):
            pooled[number] = sources
    found: dict[int, set[int]] = {}
    for number, group in enumerate(graph.groups):
        factors = {
            b.source for b in graph.blocks_into(number) if b.kind in ("left", "right")
        }
        statistics = factors & pooled.keys()
        if group.kind != "product" or not statistics:
            continue
        sources = set().union(*(pooled[s] for s in statistics))
        found[number] = sources
        for factor in factors - statistics - sources:
            found[factor] = sources
    return found
