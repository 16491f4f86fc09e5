"""Follows neurons and parameters through a network, one function after the other.

Every tensor of the network stands for one of three things: neurons (a label for each entry says of
which), elements of a parameter (which ones, and where), or constants, which are computed. Functions
that move entries are applied to labels and elements as they are, so whatever a network does with
`view`, `permute`, `chunk`, `roll` or `cat`, it stays known which neuron is where. Functions that
compute with weights have rules (`ngopt.graph.rules`), which add groups and blocks to the graph.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.core import NeuralGraph, ParameterSpec, View
from ngopt.graph.rules import RULES, entries, entrywise
from ngopt.graph.rules.registry import packet_of
from ngopt.graph.tracing.capture import Program
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.raw import RawBias, RawBlock, finish
from ngopt.graph.tracing.values import (
    NO_NEURON,
    SAME_CONSTANT,
    Neurons,
    Unknown,
    Value,
    distinct_rows,
    folded,
    nodes_among,
    without_repeats,
)


@dataclass(frozen=True)
class Region:
    """The functions of one call of a module that has a rule of its own.

    inputs: nodes outside whose values it uses. output: the last of its nodes that is used outside.
    """

    module: nn.Module
    nodes: list[Node]
    inputs: list[Node]
    output: Node


def module_regions(program: Program, model: nn.Module) -> dict[Node, Region]:
    """For every node inside the call of a module with a rule, that call."""
    if not any(isinstance(target, type) for target in RULES):
        return {}
    calls: dict[str, list[Node]] = {}
    modules: dict[str, nn.Module] = {}
    for node in program.graph.nodes:
        for call, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            module = model.get_submodule(path.split("@")[0]) if node.op == "call_function" else None
            if module is not None and type(module) in RULES:
                calls.setdefault(call, []).append(node)
                modules[call] = module
                break  # the outermost module with a rule decides
    found = {}
    for call, inner in calls.items():
        members = set(inner)
        sources = dict.fromkeys(a for n in inner for a in n.all_input_nodes if a not in members)
        inputs = [a for a in sources if a.name not in program.state]
        output = next(n for n in reversed(inner) if any(user not in members for user in n.users))
        found |= dict.fromkeys(inner, Region(modules[call], inner, inputs, output))
    return found


class Tracer:
    """Walks through a network; rules call its methods to add to the graph."""

    def __init__(self, program: Program, model: nn.Module):
        self.program, self.model = program, model
        named = list(model.named_parameters())
        self.parameters = [ParameterSpec.of(name, p) for name, p in named]
        self._position = {id(p): i for i, (_, p) in enumerate(named)}
        self.nodes = Nodes()
        self.blocks: list[RawBlock] = []
        self.biases: list[RawBias] = []
        self.activations: list[tuple[Tensor, str]] = []
        self.functions: list[tuple[Tensor, str]] = []  # which were applied to which neurons, one after the other
        self.outputs: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.learned: list[Tensor] = []  # neurons to which nothing leads, but which are no inputs
        self.pristine: set[Node] = set()  # whose neurons nothing but weights has been applied to
        self.pinned: list[Tensor] = []  # neurons that something tells apart of which no more is known
        self.data: set[Node] = set()  # functions of the network's input
        self.moved: set[Node] = set()  # functions that take other positions of neurons
        self.normalised: set[Node] = set()  # norms without a scale: a parameter that follows is one
        self.rowwise: set[int] = set()  # parameters that are normalised in rows
        self.fixed: set[int] = set()  # parameters whose neurons are all pinned
        self.cells: dict[tuple, list[Any]] = {}  # recurrent ones that take steps, by the views of their weights
        self.mixed: dict[Node, Tensor] = {}  # positions that the results of functions have, where a weight made them
        self.values: dict[Node, Value] = {}
        self._constants: dict[tuple, Tensor] = {}
        self.use: tuple = ()  # the function at which the walk is, and what it is applied to

    def run(self) -> NeuralGraph:
        """The neural graph of the whole network."""
        with torch.random.fork_rng(devices=[]):  # what some functions do is found out with random numbers
            torch.manual_seed(0)
            self._walk()
        entrywise.tell_functions_apart(self)
        return finish(self)

    def _walk(self) -> None:
        self._bind_inputs()
        regions = module_regions(self.program, self.model)
        for node in self.program.graph.nodes:
            self.nodes.call += 1
            if not self.data.isdisjoint(node.all_input_nodes):
                self.data.add(node)
            if node in regions:
                self._call_module(regions[node], node)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
                self._forget(node)
            elif node.op == "output":
                leaves = tree_leaves(tree_map(self.values.get, list(node.all_input_nodes)))
                self.outputs = [leaf.labels.flatten() for leaf in leaves if isinstance(leaf, Neurons)]

    # What rules use

    def shape_of(self, node: Node) -> torch.Size:
        return node.meta["val"].shape

    def unknown(self, node: Node) -> Value:
        """The result of a function that nothing is known of."""
        return tree_map(lambda v: Unknown(v.shape) if isinstance(v, Tensor) else v, node.meta.get("val"))

    def elements(self, parameter: Tensor) -> Elements:
        """A parameter of the model, as rules see it."""
        position = self._position[id(parameter)]
        return Elements.whole(position, self.parameters[position].shape)

    def elementwise(self, node: Node, args: tuple, kwargs: dict) -> Value:
        """The result of a function that treats each entry on its own, as far as that is so."""
        return entrywise.elementwise(self, node, args, kwargs)

    def pin(self, *labels: Tensor) -> None:
        """Marks neurons that cannot be exchanged with others, in a way that the graph does not show."""
        self.pinned += [self.nodes.find(nodes_among(x)) for x in labels]

    def is_zero(self, node: Node, value: Value) -> bool:
        """Whether an argument of a function is a constant 0, whatever the network's input is."""
        return isinstance(value, Tensor) and not value.any() and self.data.isdisjoint(node.all_input_nodes)

    def constant_nodes(self, rows: Tensor) -> Tensor:
        """Nodes (n,) that stand for different constants (n, k), the same ones for the same constants."""
        key = (tuple(rows.shape), rows.double().numpy().tobytes())
        if key not in self._constants:
            size = len(rows)
            self._constants[key] = self.nodes.new(f"constant {len(self._constants)}", size, "constant")
            self.inputs.append(self._constants[key])
        return self._constants[key]

    def owner(self, parameter: int) -> str:
        """The name of the layer that a parameter belongs to."""
        return self.parameters[parameter].name.removesuffix(".weight")

    def vector(self, labels: Tensor, dims: int | Sequence[int]) -> Tensor | None:
        """The nodes along some dimensions, (n,), when they are the same at all places of the others.

        Where they differ from place to place, as with the raw entries of an input, corresponding
        nodes become one; None if that would join nodes which one place or a weight keeps apart, or
        if nothing along these dimensions is a neuron.
        """
        dims = [d % labels.dim() for d in ([dims] if isinstance(dims, int) else dims)]
        (labels,) = without_repeats([labels], keep=dims)
        n = 1
        for d in dims:
            n *= labels.shape[d]
        rows = self.nodes.find(distinct_rows(labels.movedim(dims, list(range(-len(dims), 0))).reshape(-1, n)))
        if n > 1 and len(rows) > 1 and (rows == rows[:, :1]).all():
            return None  # each place has one neuron, at many positions
        best = rows[(rows >= 0).sum(1).argmax()]
        if not (best >= 0).any():
            return None
        rows = torch.where(rows >= 0, rows, best)
        if (rows != best).any() and not self.nodes.can_unify(torch.cat([best[None], rows])):
            return None
        return self.nodes.find(best)

    def rows(self, labels: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The different rows of nodes along a dimension, (r, n), and which of them is where, (*other dimensions).

        One where nodes are the same at all places, see `vector`. Dimensions along which rows only
        repeat may have length 1.
        """
        one = self.vector(labels, dim)
        if one is not None:
            return one[None], torch.zeros([1] * (labels.dim() - 1), dtype=torch.long)
        (labels,) = without_repeats([folded(self.nodes.find(labels))], keep=[dim % labels.dim()])
        labels = labels.movedim(dim, -1)
        rows, which = labels.reshape(-1, labels.shape[-1]).unique(dim=0, return_inverse=True)
        return rows, which.reshape(labels.shape[:-1])

    def add_block(
        self,
        view: View | None,
        sources: Tensor,
        targets: Tensor,
        shape: tuple[int, int, int],
        slot_shape: tuple[int, ...] = (),
        kind: str = "weight",
    ) -> None:
        self.blocks.append(RawBlock(view, sources, targets, shape, slot_shape, kind, self.use))

    def add_bias(self, elements: Elements | None, nodes: Tensor, kind: str = "bias") -> None:
        """A piece (n, *slots) of a parameter as a feature of n nodes."""
        view = None if elements is None else elements.view()
        if view is not None:
            self.biases.append(RawBias(view, nodes, view.shape[1:], kind))

    def source_nodes(self, labels: Tensor, name: str) -> Tensor:
        """Labels without gaps: entries that are no neuron become new, constant nodes."""
        if (labels >= 0).all():
            return labels
        labels = labels.clone()
        for label in (NO_NEURON, SAME_CONSTANT):
            missing = labels == label
            if missing.any():
                labels[missing] = new = self.nodes.new(f"{name}.constant", int(missing.sum()), "constant")
                self.learned += [new] if label == SAME_CONSTANT else []
        return labels

    # How it walks

    def _bind_inputs(self) -> None:
        for node in self.program.graph.nodes:
            if node.op not in ("placeholder", "get_attr"):
                continue
            state = self.program.state.get(node.name)
            if state is None:
                self.data.add(node)
                self.values[node] = self._user_input(node)
            else:
                self.values[node] = self.elements(state) if id(state) in self._position else state.detach().clone()

    def _user_input(self, node: Node) -> Value:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        rest = value.shape[1:]
        size = max(int(torch.Size(rest).numel()), 1)
        numbers = self.nodes.new(node.name, size, made_of=torch.empty(0, size))
        self.inputs.append(numbers)
        return Neurons(numbers.reshape(rest).expand(value.shape))

    def _call_module(self, region: Region, node: Node) -> None:
        """Applies a module's rule at the first of its functions; the others are passed over."""
        if node is not region.nodes[0]:
            return
        inputs = [self.values[source] for source in region.inputs]
        self.use = (node.name, region.module)
        rule = RULES[type(region.module)]
        result = self._apply(rule, region.output, region.module, *inputs)
        for inner in region.nodes:
            self.values[inner] = self.unknown(inner)
        self.values[region.output] = result

    def _forget(self, node: Node) -> None:
        """Pins the neurons that a function was applied to of whose result nothing is known."""
        results = [
            leaf for leaf in tree_leaves(self.values[node]) if isinstance(leaf, (Neurons, Elements, Unknown, Tensor))
        ]
        if node.users and results and all(isinstance(leaf, Unknown) for leaf in results):
            used = tree_leaves([self.values[source] for source in node.all_input_nodes])
            self.pin(*(value.labels for value in used if isinstance(value, Neurons)))

    def _apply(self, rule: Callable, node: Node, *args: Any, **kwargs: Any) -> Value:
        """What a rule says; where it fails, a warning, and nothing is known of the function's result."""
        blocks, biases = len(self.blocks), len(self.biases)
        try:
            return rule(self, node, *args, **kwargs)
        except Exception as error:
            if self.program.is_cut:  # the whole example may fit where a few rows of it do not
                raise
            del self.blocks[blocks:], self.biases[biases:]
            warnings.warn(
                f"build_graph: the rule '{rule.__name__}' failed at '{node.name}' in {type(self.model).__name__}: "
                f"{error!r}; neurons are not followed through it",
                stacklevel=2,
            )
            return self.unknown(node)

    def _call(self, node: Node) -> Value:
        args, kwargs = tree_map(lambda a: self.values[a] if isinstance(a, Node) else a, (node.args, node.kwargs))
        leaves = tree_leaves((args, kwargs))
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], (list, tuple)) else self.unknown(node)
        if not any(isinstance(leaf, (Neurons, Elements, Unknown)) for leaf in leaves):
            return self._apply(entrywise.constant, node, *args, **kwargs)
        packet = packet_of(node)
        rule: Callable | None = RULES.get(node.target) or RULES.get(packet)
        if rule is not None:
            seen = [a.name for a in node.all_input_nodes if isinstance(self.values[a], Neurons)]
            self.use = (*seen, packet, str([a for a in node.args if not isinstance(a, Node)]))
            return self._apply(rule, node, *args, **kwargs)
        if packet in entries.MOVES:
            return self._apply(entries.move, node, args, kwargs)
        return self._apply(entrywise.elementwise, node, args, kwargs)
