"""Follows neurons and parameters through a network, one function after the other.

Every tensor of the network stands for one of three things: neurons (a label for each
entry says of which), elements of a parameter (which ones, and where), or constants,
which are computed. Functions that move entries are applied to labels and elements as
they are, so whatever a network does with `view`, `permute`, `chunk`, `roll` or `cat`,
it stays known which neuron is where. Functions that compute with weights have rules
(`ngopt.graph.rules`), which add nodes and edges to the graph.
"""

from __future__ import annotations

import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.core import NeuralGraph
from ngopt.graph.rules import RULES, pointwise, reshaping
from ngopt.graph.tracing.assembly import assemble
from ngopt.graph.tracing.capture import Program, one_line, packet_of
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    Elements,
    Neurons,
    Unknown,
    Value,
    constant_labels,
    strided_numbers,
    with_zero_strides,
)


def trace(program: Program, model: nn.Module) -> NeuralGraph:
    """The neural graph of the whole network."""
    # what some functions do is found out with random numbers, of the CPU alone
    with on_cpu(), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed those of all devices
        torch.default_generator.manual_seed(0)
        walk = RuleInterpreter(program, model)
        walk.run()
        return assemble(walk.tracer)


def on_cpu() -> AbstractContextManager:
    """Labels and constants are made on the CPU, whatever the default device is."""
    is_default = torch.get_default_device().type == "cpu"
    return nullcontext() if is_default else torch.device("cpu")


@dataclass(frozen=True)
class Region:
    """The functions of one call of a module that has a rule of its own.

    inputs: functions outside whose values it uses. output: the last of its functions
    whose value is used outside.
    """

    module: nn.Module
    calls: list[Node]
    inputs: list[Node]
    output: Node


def module_regions(program: Program, model: nn.Module) -> dict[Node, Region]:
    """For every function inside the call of a module with a rule, that call."""
    if not any(isinstance(target, type) for target in RULES):
        return {}
    inside: dict[str, list[Node]] = {}
    modules: dict[str, nn.Module] = {}
    for call in program.graph.nodes:
        for name, module in _modules_around(call, model):
            if type(module) in RULES:
                # a second call has another name (layer@1), and so a region of its own
                inside.setdefault(name, []).append(call)
                modules[name] = module
                break  # the outermost module with a rule decides
    found: dict[Node, Region] = {}
    for name, calls in inside.items():
        region = _region(program, modules[name], calls)
        found |= dict.fromkeys(calls, region)
    return found


def _region(program: Program, module: nn.Module, calls: list[Node]) -> Region:
    members = set(calls)
    inputs: dict[Node, None] = {}  # in their order
    for call in calls:
        outside = [source for source in call.all_input_nodes if source not in members]
        inputs |= dict.fromkeys(
            source for source in outside if source.name not in program.state
        )
    output = next(
        call for call in reversed(calls) if not members.issuperset(call.users)
    )
    return Region(module, calls, list(inputs), output)


def _modules_around(call: Node, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a function is called in, from the outermost on, with names for
    each time."""
    if call.op != "call_function":
        return
    for name, (path, _) in (call.meta.get("nn_module_stack") or {}).items():
        yield name, model.get_submodule(path.split("@")[0])


class Memory:
    """Which tensors share memory, so that what is written to one is written to others.

    values: what each tensor stands for. Constants are tensors whose own memory is
    written.
    """

    def __init__(self, values: dict[Node, Value]):
        self.values = values
        self._sharing: dict[int, list[Node]] = defaultdict(list)

    def add(self, call: Node) -> None:
        """Notes down where the result of a function lies, and what the function writes."""
        tensor = call.meta.get("val")
        if not isinstance(tensor, Tensor):
            return
        if _writes(call):
            self._write(call)
        sharing = self._sharing[_storage(tensor)]
        sharing.append(call)

    def _write(self, call: Node) -> None:
        operand: Any = call.args[0]
        result = self.values[call]
        if not isinstance(result, (Neurons, Unknown)):
            return
        tensor = operand.meta["val"]
        old = self.values[operand]
        self.values[operand] = result
        sharing = self._sharing[_storage(tensor)]
        others = [other for other in sharing if other is not operand]
        if not others or _are_same(old, result):
            return
        written = _Written.of(tensor, result)
        for other in others:
            own = other.meta["val"]
            self.values[other] = written.seen_in(own, self.values[other])


@dataclass(frozen=True)
class _Written:
    """labels: of what was written, 0 or less for no neuron; None where nothing is known
    of it.

    places: for every place in memory which of the labels is there, -1 for none.
    """

    labels: Tensor | None
    places: Tensor

    @classmethod
    def of(cls, tensor: Tensor, result: Neurons | Unknown) -> _Written:
        numbers = _numbers(tensor)
        count = numbers.numel()
        size = int(numbers.max()) + 1 if count else 0
        places = torch.full((size,), -1)
        places[numbers] = torch.arange(count).reshape(numbers.shape)
        labels = result.labels.flatten() if isinstance(result, Neurons) else None
        return cls(labels, places)

    def seen_in(self, tensor: Tensor, value: Value) -> Value:
        """What a tensor of the same memory stands for after this was written."""
        which = self._seen(_numbers(tensor))
        is_new = which >= 0
        if not is_new.any():
            return value
        old = _labels(value)
        is_lost = old is None and not is_new.all()
        if self.labels is None or is_lost:
            return Unknown(which.shape)
        # -1 would read the last one
        new = self.labels[which.clamp(min=0)]
        if old is not None:
            new = torch.where(is_new, new, old)
        return Neurons(with_zero_strides(new))

    def _seen(self, numbers: Tensor) -> Tensor:
        """Which of the labels is at each place in memory, -1 for none."""
        if not len(self.places):
            return torch.full_like(numbers, -1)
        is_behind = numbers >= len(self.places)
        inside = numbers.masked_fill(is_behind, 0)
        return self.places[inside].masked_fill(is_behind, -1)


class RuleInterpreter:
    """Gives every function of a program to its rule."""

    def __init__(self, program: Program, model: nn.Module):
        self.program, self.model = program, model
        self.tracer = Tracer(model)
        self.values = self.tracer.values
        self.memory = Memory(self.values)

    def run(self) -> None:
        regions = module_regions(self.program, self.model)
        for call in self.program.graph.nodes:
            if call.op in ("placeholder", "get_attr"):
                self.values[call] = self._input(call)
        for call in self.program.graph.nodes:
            # targets of a weight are of one step, which keeps them apart; two layers
            # may be one
            self.tracer.nodes.step += 1
            if not self.tracer.input_dependent.isdisjoint(call.all_input_nodes):
                self.tracer.input_dependent.add(call)
            if call in regions:
                self._apply_module(regions[call], call)
            elif call.op == "call_function":
                self.values[call] = self._with_positions(call, self._value(call))
                self._pin_before_unknown(call)
            elif call.op == "output":
                self._mark_outputs(call)
                break
            self.memory.add(call)

    def _input(self, call: Node) -> Value:
        """An input of the network, a parameter or a constant."""
        state = self.program.state.get(call.name)
        if state is not None:
            if self.tracer.is_parameter(state):
                return self.tracer.elements(state)
            return _constant(state)
        self.tracer.input_dependent.add(call)
        value = call.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point() and not value.is_complex():
            # tokens: 0 is a row of every table
            return torch.zeros(value.shape, dtype=value.dtype)
        rest = value.shape[1:]
        size = max(rest.numel(), 1)
        # made of nothing, so free: a linear layer unifies the places of a sequence
        free = torch.empty(0, size)
        nodes = self.tracer.nodes.new(call.name, size, made_of=free, mark=Mark.INPUT)
        # rows of a batch have the same nodes
        return Neurons(nodes.reshape(rest).expand(value.shape))

    def _mark_outputs(self, call: Node) -> None:
        for leaf in tree_leaves(
            [self.values.get(source) for source in call.all_input_nodes]
        ):
            if isinstance(leaf, Neurons):
                self.tracer.nodes.mark(leaf.labels, Mark.OUTPUT)

    def _apply_module(self, region: Region, call: Node) -> None:
        """Applies a module's rule at the first of its functions; the others are passed
        over."""
        if call is not region.calls[0]:
            return
        inputs = [self.values[source] for source in region.inputs]
        rule = RULES[type(region.module)]
        result = self._apply(rule, region.output, region.module, *inputs)
        for inner in region.calls:
            self.values[inner] = self.tracer.unknown(inner)
        # last, as the output is one of these calls
        self.values[region.output] = result

    def _with_positions(self, call: Node, result: Value) -> Value:
        """Positions that a weight has made are those of what is done entry by entry
        behind it."""
        inputs = [self.values[source] for source in call.all_input_nodes]
        neurons = [value for value in inputs if isinstance(value, Neurons)]
        if (
            not isinstance(result, Neurons)
            or result.positions is not None
            or len(neurons) != 1
        ):
            return result
        if not pointwise.is_declared_entrywise(call):
            return result
        return replace(result, positions=neurons[0].positions)

    def _pin_before_unknown(self, call: Node) -> None:
        """Pins the neurons that a function was applied to of whose result nothing is
        known."""
        if not call.users or not _is_lost(self.values[call]):
            return
        for value in tree_leaves(
            [self.values[source] for source in call.all_input_nodes]
        ):
            if isinstance(value, Neurons):
                self.tracer.pin(value.labels)

    def _value(self, call: Node) -> Value:
        """What the result of a function stands for."""
        if isinstance(call.meta.get("val"), (bool, int, float)):  # a size
            return call.meta["val"]
        operands = (call.args, call.kwargs)
        args, kwargs = tree_map(
            lambda a: self.values[a] if isinstance(a, Node) else a, operands
        )
        if call.target is operator.getitem:
            is_several = isinstance(args[0], (list, tuple))
            return args[0][args[1]] if is_several else self.tracer.unknown(call)
        traced = (Neurons, Elements, Unknown)
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, traced) for leaf in leaves):
            return self._apply(pointwise.constant, call, *args, **kwargs)
        packet = packet_of(call)
        rule = RULES.get(call.target) or RULES.get(packet) or RULES.get(str(packet))
        if rule is not None:
            return self._apply(rule, call, *args, **kwargs)
        if packet in reshaping.MOVES:
            return self._apply(reshaping.move, call, args, kwargs)
        return self._apply(pointwise.pointwise_function, call, args, kwargs)

    def _apply(self, rule: Callable, call: Node, *args: Any, **kwargs: Any) -> Value:
        """What a rule says; where it fails, a warning, and nothing is known of the
        result."""
        found = self.tracer.all_edges
        count = len(found)
        try:
            return rule(self.tracer, call, *args, **kwargs)
        except Exception as error:
            # the whole example may fit where a few rows of it do not
            if self.program.is_cut:
                raise
            # half of a rule's edges would be a false graph; nodes without edges are in
            # none
            del found[count:]
            # among integer inputs, traced as zeros, an index may not find what it looks
            # for
            if rule is not pointwise.constant:
                warnings.warn(
                    f"build_graph: the rule '{rule.__name__}' failed at '{call.name}' in "
                    f"{type(self.model).__name__}: {type(error).__name__}: {one_line(error)}; "
                    f"neurons are not followed through it",
                    stacklevel=2,
                )
            return self.tracer.unknown(call)


def _constant(state: Any) -> Value:
    """A buffer or a constant of a network, where rules compute with it."""
    if not isinstance(state, Tensor):  # such as a torch.Generator
        return state
    if state.is_meta:
        return Unknown(state.shape)
    # a copy, as functions that work in place, such as add_ on a counter, are computed
    # with it
    return state.detach().to("cpu", copy=True)


def _is_lost(value: Value) -> bool:
    """Whether nothing is known of all tensors of a value."""
    leaves = tree_leaves(value)
    is_known = any(isinstance(leaf, (Neurons, Elements, Tensor)) for leaf in leaves)
    return not is_known and any(isinstance(leaf, Unknown) for leaf in leaves)


def _are_same(old: Value, new: Value) -> bool:
    """Whether neurons are what they were, as behind an activation."""
    if not isinstance(old, Neurons) or not isinstance(new, Neurons):
        return False
    return torch.equal(old.labels, new.labels)


def _labels(value: Value) -> Tensor | None:
    if isinstance(value, Tensor):
        return constant_labels(value)
    return value.labels if isinstance(value, Neurons) else None


def _writes(call: Node) -> bool:
    """Whether a function writes its first operand."""
    schema = getattr(call.target, "_schema", None)
    if schema is None or not schema.arguments or not isinstance(call.args[0], Node):
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _numbers(tensor: Tensor) -> Tensor:
    """Where in memory every entry of a tensor lies."""
    offset = int(tensor.storage_offset())
    return strided_numbers(tensor.shape, tensor.stride(), offset)
