"""Follows neurons and parameters through an exported network, one function after the other.

Every tensor of the network stands for one of three things: neurons (a label for each entry says of
which), elements of a parameter (which ones, and where), or constants, which are computed. Functions
that move entries are applied to labels and elements as they are, so whatever a network does with
`view`, `permute`, `chunk`, `roll` or `cat`, it stays known which neuron is where. Functions that
compute with weights have rules (`ngopt.graph.rules`), which add groups and blocks to the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.core import NeuralGraph, ParameterSpec, View
from ngopt.graph.elements import Elements
from ngopt.graph.nodes import Nodes


@dataclass(frozen=True)
class Neurons:
    """A tensor of activations: for every entry the number of its node; -1 where there is none."""

    labels: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.labels.shape


@dataclass(frozen=True)
class Unknown:
    """A tensor of which nothing is known but its shape."""

    shape: torch.Size


Value = Neurons | Elements | Unknown | Tensor | Any


@dataclass(frozen=True)
class RawBlock:
    """A block whose ends are still node numbers: sources (groups * n_source,), targets (groups * n_target,)."""

    view: View | None
    sources: Tensor
    targets: Tensor
    shape: tuple[int, int, int]
    slot_shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True)
class RawBias:
    view: View
    nodes: Tensor
    slot_shape: tuple[int, ...]
    kind: str


class Tracer:
    """Walks through an exported network; rules call its methods to add to the graph."""

    def __init__(self, program: ExportedProgram, model: nn.Module):
        self.program, self.model = program, model
        named = list(model.named_parameters())
        self.parameters = [ParameterSpec(name, tuple(p.shape)) for name, p in named]
        self._position = {id(p): i for i, (_, p) in enumerate(named)}
        self.nodes = Nodes()
        self.blocks: list[RawBlock] = []
        self.biases: list[RawBias] = []
        self.activations: list[tuple[Tensor, str]] = []
        self.outputs: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.pristine: set[Node] = set()  # whose neurons nothing but weights has been applied to
        self.values: dict[Node, Value] = {}

    def run(self) -> NeuralGraph:
        from ngopt.graph.finish import finish

        self._bind_inputs()
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                leaves = tree_leaves(tree_map(self.values.get, list(node.all_input_nodes)))
                self.outputs = [leaf.labels.flatten() for leaf in leaves if isinstance(leaf, Neurons)]
        return finish(self)

    # What rules use

    def shape_of(self, node: Node) -> torch.Size:
        return node.meta["val"].shape

    def owner(self, parameter: int) -> str:
        """The name of the layer that a parameter belongs to."""
        return self.parameters[parameter].name.removesuffix(".weight")

    def vector(self, labels: Tensor, dims: int | Sequence[int]) -> Tensor | None:
        """The nodes along some dimensions, (n,), when they are the same at all places of the others.

        Where they differ from place to place, as with the raw entries of an input, corresponding
        nodes become one; None if that would join nodes which one place keeps apart, or if nothing
        along these dimensions is a neuron.
        """
        dims = [d % labels.dim() for d in ([dims] if isinstance(dims, int) else dims)]
        (labels,) = without_repeats([labels], keep=dims)
        n = 1
        for d in dims:
            n *= labels.shape[d]
        rows = self.nodes.find(distinct_rows(labels.movedim(dims, list(range(-len(dims), 0))).reshape(-1, n)))
        best = rows[(rows >= 0).sum(1).argmax()]
        if not (best >= 0).any():
            return None
        rows = torch.where(rows >= 0, rows, best)
        if (rows != best).any() and not self.nodes.can_unify(torch.cat([best[None], rows])):
            return None
        return self.nodes.find(best)

    def add_block(
        self,
        view: View | None,
        sources: Tensor,
        targets: Tensor,
        shape: tuple[int, int, int],
        slot_shape: tuple[int, ...] = (),
        kind: str = "weight",
    ) -> None:
        self.blocks.append(RawBlock(view, sources, targets, shape, slot_shape, kind))

    def add_bias(self, elements: Elements | None, nodes: Tensor, kind: str = "bias") -> None:
        """A piece (n, *slots) of a parameter as a feature of n nodes."""
        view = None if elements is None else elements.view()
        if view is not None:
            self.biases.append(RawBias(view, nodes, view.shape[1:], kind))

    def source_nodes(self, labels: Tensor, name: str) -> Tensor:
        """Labels without gaps: entries that are no neuron become new, constant nodes."""
        missing = labels < 0
        if missing.any():
            labels = labels.clone()
            labels[missing] = self.nodes.new(f"{name}.constant", int(missing.sum()), "constant")
        return labels

    # How it walks

    def _bind_inputs(self) -> None:
        placeholders = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        for spec in self.program.graph_signature.input_specs:
            node = placeholders.get(getattr(spec.arg, "name", ""))
            if node is None:
                continue
            if spec.kind == InputKind.PARAMETER:
                position = self._position[id(self.model.get_parameter(spec.target))]
                self.values[node] = Elements.whole(position, self.parameters[position].shape)
            elif spec.kind == InputKind.BUFFER:
                self.values[node] = self.model.get_buffer(spec.target).detach().clone()
            elif spec.kind in (InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ):
                self.values[node] = self.program.constants[spec.target]
            else:
                self.values[node] = self._user_input(node)

    def _user_input(self, node: Node) -> Value:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        rest = value.shape[1:]
        numbers = self.nodes.new(node.name, max(int(torch.Size(rest).numel()), 1), "neuron")
        self.inputs.append(numbers)
        return Neurons(numbers.reshape(rest).expand(value.shape))

    def _call(self, node: Node) -> Value:
        from ngopt.graph.rules import MOVES, RULES, elementwise, move

        args, kwargs = tree_map(lambda a: self.values[a] if isinstance(a, Node) else a, (node.args, node.kwargs))
        leaves = tree_leaves((args, kwargs))
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], (list, tuple)) else self._unknown(node)
        if not any(isinstance(leaf, (Neurons, Elements, Unknown)) for leaf in leaves):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        packet = getattr(node.target, "overloadpacket", node.target)
        rule: Callable | None = RULES.get(node.target) or RULES.get(packet)
        if rule is not None:
            return rule(self, node, *args, **kwargs)
        if packet in MOVES:
            return move(self, node, args, kwargs)
        return elementwise(self, node, args, kwargs)

    def _unknown(self, node: Node) -> Value:
        return tree_map(lambda v: Unknown(v.shape) if isinstance(v, Tensor) else v, node.meta.get("val"))

    unknown = _unknown


def without_repeats(tensors: Sequence[Tensor], keep: Sequence[int] = ()) -> list[Tensor]:
    """Tensors of one shape, cut to length 1 along dimensions in which all of them only repeat (stride 0)."""
    for d in range(tensors[0].dim()):
        if d not in keep and all(t.stride(d) == 0 for t in tensors):
            tensors = [t.narrow(d, 0, min(1, t.shape[d])) for t in tensors]
    return list(tensors)


def folded(labels: Tensor) -> Tensor:
    """The same labels, with stride 0 along every dimension in which they only repeat."""
    shape = labels.shape
    for d in range(labels.dim()):
        if labels.stride(d) != 0 and labels.shape[d] > 1:
            first = labels.narrow(d, 0, 1)
            if (labels == first).all():
                labels = first
    return labels.expand(shape)


def unique_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The different pairs of entries of two flat, non-negative tensors, (2, pairs), sorted, and which each is."""
    if not a.numel():
        return torch.stack([a, b]), a
    base = int(b.max()) + 1
    keys, which = (a * base + b).unique(return_inverse=True)
    return torch.stack([keys // base, keys % base]), which


def distinct_rows(rows: Tensor) -> Tensor:
    """The rows (r, n) that differ, the first one first; a view of it where none does."""
    if not (rows != rows[:1]).any():
        return rows[:1]
    return torch.cat([rows[:1], rows.unique(dim=0)])
