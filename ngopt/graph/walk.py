"""Follows neurons and parameters through a network, one function after the other.

Every tensor of the network stands for one of three things: neurons (a label for each entry says of
which), elements of a parameter (which ones, and where), or constants, which are computed. Functions
that move entries are applied to labels and elements as they are, so whatever a network does with
`view`, `permute`, `chunk`, `roll` or `cat`, it stays known which neuron is where. Functions that
compute with weights have rules (`ngopt.graph.rules`), which add nodes and edges to the graph.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.core import NeuralGraph
from ngopt.graph.rules import RULES, entries, entrywise
from ngopt.graph.rules.registry import packet_of
from ngopt.graph.tracing.capture import Program
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.finish import finish
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import Neurons, Unknown, Value


def trace(program: Program, model: nn.Module) -> NeuralGraph:
    """The neural graph of the whole network."""
    walk = Walk(program, model)
    with torch.random.fork_rng(devices=[]):  # what some functions do is found out with random numbers
        torch.manual_seed(0)
        walk.run()
    return finish(walk.tracer)


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


class Walk:
    """Gives every function of a program to its rule."""

    def __init__(self, program: Program, model: nn.Module):
        self.program, self.model = program, model
        self.tracer = Tracer(model)
        self.values = self.tracer.values

    def run(self) -> None:
        tracer = self.tracer
        self._bind_inputs()
        regions = module_regions(self.program, self.model)
        for node in self.program.graph.nodes:
            tracer.nodes.call += 1
            if not tracer.data.isdisjoint(node.all_input_nodes):
                tracer.data.add(node)
            if node in regions:
                self._call_module(regions[node], node)
            elif node.op == "call_function":
                self.values[node] = self._with_positions(node, self._call(node))
                self._pin_before_unknown(node)
            elif node.op == "output":
                leaves = tree_leaves(tree_map(self.values.get, list(node.all_input_nodes)))
                for leaf in leaves:
                    if isinstance(leaf, Neurons):
                        tracer.nodes.mark(leaf.labels, Mark.OUTPUT)

    def _bind_inputs(self) -> None:
        for node in self.program.graph.nodes:
            if node.op not in ("placeholder", "get_attr"):
                continue
            state = self.program.state.get(node.name)
            if state is None:
                self.tracer.data.add(node)
                self.values[node] = self._user_input(node)
            elif self.tracer.is_parameter(state):
                self.values[node] = self.tracer.elements(state)
            else:
                self.values[node] = state.detach().clone()

    def _user_input(self, node: Node) -> Value:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        rest = value.shape[1:]
        size = max(int(torch.Size(rest).numel()), 1)
        free = torch.empty(0, size)
        numbers = self.tracer.nodes.new(node.name, size, made_of=free, mark=Mark.INPUT)
        return Neurons(numbers.reshape(rest).expand(value.shape))

    def _call_module(self, region: Region, node: Node) -> None:
        """Applies a module's rule at the first of its functions; the others are passed over."""
        if node is not region.nodes[0]:
            return
        inputs = [self.values[source] for source in region.inputs]
        rule = RULES[type(region.module)]
        result = self._apply(rule, region.output, region.module, *inputs)
        for inner in region.nodes:
            self.values[inner] = self.tracer.unknown(inner)
        self.values[region.output] = result

    def _with_positions(self, node: Node, result: Value) -> Value:
        """Positions that a weight has made are those of what is done entry by entry behind it."""
        inputs = [self.values[source] for source in node.all_input_nodes]
        neurons = [value for value in inputs if isinstance(value, Neurons)]
        if not isinstance(result, Neurons) or result.positions is not None or len(neurons) != 1:
            return result
        if not entrywise.is_declared_entrywise(node):
            return result
        return replace(result, positions=neurons[0].positions)

    def _pin_before_unknown(self, node: Node) -> None:
        """Pins the neurons that a function was applied to of whose result nothing is known."""
        leaves = tree_leaves(self.values[node])
        results = [leaf for leaf in leaves if isinstance(leaf, (Neurons, Elements, Unknown, Tensor))]
        if node.users and results and all(isinstance(leaf, Unknown) for leaf in results):
            used = tree_leaves([self.values[source] for source in node.all_input_nodes])
            self.tracer.pin(*(value.labels for value in used if isinstance(value, Neurons)))

    def _apply(self, rule: Callable, node: Node, *args: Any, **kwargs: Any) -> Value:
        """What a rule says; where it fails, a warning, and nothing is known of the function's result."""
        tracer = self.tracer
        count = len(tracer.found)
        try:
            return rule(tracer, node, *args, **kwargs)
        except Exception as error:
            if self.program.is_cut:  # the whole example may fit where a few rows of it do not
                raise
            del tracer.found[count:]
            warnings.warn(
                f"build_graph: the rule '{rule.__name__}' failed at '{node.name}' in "
                f"{type(self.model).__name__}: {error!r}; neurons are not followed through it",
                stacklevel=2,
            )
            return tracer.unknown(node)

    def _call(self, node: Node) -> Value:
        tracer = self.tracer
        args, kwargs = tree_map(lambda a: self.values[a] if isinstance(a, Node) else a, (node.args, node.kwargs))
        leaves = tree_leaves((args, kwargs))
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], (list, tuple)) else tracer.unknown(node)
        if not any(isinstance(leaf, (Neurons, Elements, Unknown)) for leaf in leaves):
            return self._apply(entrywise.constant, node, *args, **kwargs)
        packet = packet_of(node)
        rule: Callable | None = RULES.get(node.target) or RULES.get(packet)
        if rule is not None:
            return self._apply(rule, node, *args, **kwargs)
        if packet in entries.MOVES:
            return self._apply(entries.move, node, args, kwargs)
        return self._apply(entrywise.elementwise, node, args, kwargs)
