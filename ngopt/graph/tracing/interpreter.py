"""Applies the rules to every function of a network, one after the other.

Every tensor of the network is represented as one of four values: `Neurons` (a label
for each entry), `Elements` of a parameter, a constant, which is computed, or `Unknown`.
Functions that rearrange entries are applied to labels and elements, so that neurons are
followed through `view`, `permute`, `chunk`, `roll` or `cat`. Functions that compute
with weights have rules (`ngopt.graph.rules`), which add nodes and edges to the graph.
"""

import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.rules import constants, reshaping
from ngopt.graph.rules.pointwise import is_declared_pointwise, pointwise_function
from ngopt.graph.rules.registry import RULES
from ngopt.graph.tracing.assembly import assemble
from ngopt.graph.tracing.capture import Program, one_line, packet_of
from ngopt.graph.tracing.isolation import process_kept
from ngopt.graph.tracing.nodes import Mark
from ngopt.graph.tracing.tracer import Tracer
from ngopt.graph.tracing.values import (
    TRACED,
    Elements,
    Neurons,
    Unknown,
    Value,
    constant_labels,
    has_any,
    places_in_memory,
    storage_of,
    with_zero_strides,
)


class Traced(NamedTuple):
    """The neural graph of a whole network.

    lost: inputs without an edge, each with the function behind which it is unknown.
    """

    graph: NeuralGraph
    lost: list[str]


def trace(program: Program, model: nn.Module) -> Traced:
    """Applies the rules, again if some inputs turn out to have no batch axis."""
    # labels and constants are made on the CPU, whatever the default device is;
    # torch.get_default_device fails in torch 2.6 after set_default_device(None)
    on_cpu = nullcontext() if torch.empty(0).is_cpu else torch.device("cpu")
    # rules try some functions on random numbers, of the CPU alone
    with process_kept(), torch.random.fork_rng(devices=[]), on_cpu:
        unbatched: set[str] = set()
        while True:
            # torch.manual_seed would seed those of all devices
            torch.default_generator.manual_seed(0)
            interpreter = RuleInterpreter(program, model, unbatched)
            interpreter.run()
            tracer = interpreter.tracer
            if tracer.unbatched <= unbatched:
                return Traced(assemble(tracer), tracer.lost_inputs())
            unbatched |= tracer.unbatched


class RuleInterpreter:
    """Applies the rule of every function of a program.

    unbatched: names of inputs whose first axis contains neurons, and not a batch.
    """

    def __init__(self, program: Program, model: nn.Module, unbatched: Collection[str]):
        self.program = program
        self.model = model
        self.unbatched = unbatched
        self.tracer = Tracer(model, RULES)
        self.values = self.tracer.values
        self.memory = Memory(self.values)
        self.module_calls = module_calls(program, model)

    def run(self) -> None:
        calls = self.program.graph.nodes
        for call in calls:
            if call.op in ("placeholder", "get_attr"):
                self.values[call] = self._input(call)
        for call in calls:
            if call.op == "output":
                for neurons in self._neurons_before(call):
                    self.tracer.nodes.mark(neurons.labels, Mark.OUTPUT)
                break
            # targets of a weight of one step are never unified; two layers may be
            self.tracer.nodes.step += 1
            if not self.tracer.input_dependent.isdisjoint(call.all_input_nodes):
                self.tracer.input_dependent.add(call)
            if call in self.module_calls:
                self._apply_module(self.module_calls[call], call)
            elif call.op == "call_function":
                self._apply_function(call)
            self.memory.add(call)

    def _apply_function(self, call: Node) -> None:
        result = self._result(call)
        before = list(self._neurons_before(call))
        keeps_positions = len(before) == 1 and is_declared_pointwise(call)
        # behind a pointwise function, positions that a weight made stay
        if isinstance(result, Neurons) and result.positions is None and keeps_positions:
            result = replace(result, positions=before[0].positions)
        self.values[call] = result
        leaves = tree_leaves(result)
        is_known = has_any(leaves, (Neurons, Elements, Tensor))
        if call.users and has_any(leaves, Unknown) and not is_known:
            for neurons in before:
                self.tracer.pin(neurons.labels)
                self.tracer.lose(neurons.labels, call)

    def _input(self, call: Node) -> Value:
        """An input of the network, a parameter or a constant."""
        state = self.program.state.get(call.name)
        if state is not None:
            if self.tracer.is_parameter(state):
                return self.tracer.elements(state)
            if not isinstance(state, Tensor):  # such as a torch.Generator
                return state
            if state.is_meta:
                return Unknown(state.shape)
            # a copy, as functions that work in place (add_ on a counter) change it
            return state.detach().to("cpu", copy=True)
        self.tracer.input_dependent.add(call)
        value = call.meta.get("val")
        if not isinstance(value, Tensor):
            return value
        is_number = value.is_floating_point() or value.is_complex()
        # bytes are pixels: a table is read at other integers
        if not is_number and value.dtype != torch.uint8:
            # tokens: 0 is a row of every table
            return torch.zeros(value.shape, dtype=value.dtype)
        # rows of a batch have the same nodes, as have places of an image without one
        row = value.shape[1:]
        if call.name in self.unbatched:
            row = torch.Size((len(value), *[1] * len(row)))
        nodes = self.tracer.new_input(call, row)
        return Neurons(nodes.expand(value.shape))

    def _neurons_before(self, call: Node) -> Iterator[Neurons]:
        """All neurons that a function is applied to."""
        sources = call.all_input_nodes
        if packet_of(call) in reshaping.SHAPED_LIKE:  # any other tensor of that shape
            sources = sources[:1]
        for source in sources:
            for leaf in tree_leaves(self.values.get(source)):
                if isinstance(leaf, Neurons):
                    yield leaf

    def _apply_module(self, module_call: "ModuleCall", call: Node) -> None:
        """Applies a module's rule at the first of its functions; skips the others."""
        if call is not module_call.functions[0]:
            return
        inputs = [self.values[source] for source in module_call.inputs]
        module, output = module_call.module, module_call.output
        result = self._apply(RULES[type(module)], output, module, *inputs)
        for function in module_call.functions:
            self.values[function] = self.tracer.unknown(function)
        # last, as the output is one of these functions
        self.values[output] = result

    def _result(self, call: Node) -> Value:
        value = call.meta.get("val")
        if isinstance(value, (bool, int, float)):  # a size
            return value
        if isinstance(value, Tensor) and not value.numel():
            # no label could say of which neurons it has no rows
            return torch.zeros(value.shape, dtype=value.dtype)
        args, kwargs = tree_map(self._value, (call.args, call.kwargs))
        if call.target is operator.getitem:
            results, index = args
            is_several = isinstance(results, (list, tuple))
            return results[index] if is_several else self.tracer.unknown(call)
        if not has_any(tree_leaves((args, kwargs)), TRACED):
            return self._apply(constants.constant, call, *args, **kwargs)
        packet = packet_of(call)
        rule = RULES.get(call.target) or RULES.get(packet) or RULES.get(str(packet))
        if rule is None and packet in reshaping.REARRANGING:
            rule = reshaping.rearrange
        return self._apply(rule or pointwise_function, call, *args, **kwargs)

    def _value(self, argument: Any) -> Value:
        return self.values[argument] if isinstance(argument, Node) else argument

    def _apply(self, rule: Callable, call: Node, *args: Any, **kwargs: Any) -> Value:
        """The value that a rule returns; Unknown, with a warning, if it fails."""
        all_edges = self.tracer.all_edges
        count = len(all_edges)
        self.tracer.call = call
        try:
            result = rule(self.tracer, call, *args, **kwargs)
            is_several = isinstance(call.meta.get("val"), (list, tuple))
            if is_several and not isinstance(result, (list, tuple)):
                return self._for_each_result(call, result)
            return result
        except Exception as error:
            # the whole example may fit although a few rows of it do not
            if self.program.is_cut:
                raise
            # some edges of a rule would be a false graph; unconnected nodes are in none
            del all_edges[count:]
            # integer inputs are traced as zeros: an index of constants may be missing
            if rule is not constants.constant:
                warnings.warn(
                    f"build_graph: the rule '{rule.__name__}' failed at '{call.name}' "
                    f"in {type(self.model).__name__}: {type(error).__name__}: "
                    f"{one_line(error)}; neurons are not followed through it",
                    stacklevel=2,
                )
            return self.tracer.unknown(call)

    def _for_each_result(self, call: Node, value: Value) -> list[Value]:
        """The value for all results of its shape; others, such as indices and
        statistics, are unknown."""
        results: Any = list(self.tracer.unknown(call))  # type: ignore[arg-type]
        for k, result in enumerate(call.meta["val"]):
            if result.shape == value.shape and result.dtype != torch.long:
                results[k] = value
        return results


@dataclass(frozen=True)
class ModuleCall:
    """The functions of one call of a module.

    inputs: functions outside whose results they use. output: the last of the functions
    whose result is used outside.
    """

    module: nn.Module
    functions: list[Node]
    inputs: list[Node]
    output: Node


def module_calls(program: Program, model: nn.Module) -> dict[Node, ModuleCall]:
    """For every function inside of a module with a rule, the call of that module."""
    if not any(isinstance(target, type) for target in RULES):
        return {}
    inside: dict[str, list[Node]] = {}
    modules: dict[str, nn.Module] = {}
    for function in program.graph.nodes:
        if function.op != "call_function":
            continue
        stack = function.meta.get("nn_module_stack") or {}
        for name, (path, _) in stack.items():
            module = model.get_submodule(path.split("@")[0])
            if type(module) in RULES:
                # the name of a second call differs: layer@1
                inside.setdefault(name, []).append(function)
                modules[name] = module
                break  # the outermost module with a rule
    calls: dict[Node, ModuleCall] = {}
    for name, functions in inside.items():
        members = set(functions)
        inputs: dict[Node, None] = {}  # in their order
        output = functions[-1]
        for function in functions:
            for source in function.all_input_nodes:
                if source not in members and source.name not in program.state:
                    inputs[source] = None
            if not members.issuperset(function.users):
                output = function
        call = ModuleCall(modules[name], functions, list(inputs), output)
        calls |= dict.fromkeys(functions, call)
    return calls


class Memory:
    """Updates the values of tensors that share memory with a tensor that is written:
    what is written to one is written to the others.

    values: of the results of functions. Constants are tensors whose own memory is
    written.
    """

    def __init__(self, values: dict[Node, Value]):
        self.values = values
        self._sharing: dict[int, list[Node]] = defaultdict(list)

    def add(self, call: Node) -> None:
        """Records the memory of a function's result, and applies its write, if any."""
        tensor = call.meta.get("val")
        if not isinstance(tensor, Tensor):
            return
        schema = getattr(call.target, "_schema", None)
        if schema is not None and schema.arguments and isinstance(call.args[0], Node):
            alias = schema.arguments[0].alias_info
            if alias is not None and alias.is_write:
                self._write(call)
        self._sharing[storage_of(tensor)].append(call)

    def _write(self, call: Node) -> None:
        """Applies the write of a function to its first operand."""
        operand: Any = call.args[0]
        result = self.values[call]
        if not isinstance(result, (Neurons, Unknown)):
            return
        tensor = operand.meta["val"]
        old = self.values[operand]
        self.values[operand] = result
        is_same = False  # as behind an activation
        if isinstance(old, Neurons) and isinstance(result, Neurons):
            is_same = torch.equal(old.labels, result.labels)
        key = storage_of(tensor)
        # functions with a value were applied: those of a loop read no earlier views
        sharing = [
            other
            for other in self._sharing[key]
            if any(user not in self.values for user in reversed(other.users))
        ]
        self._sharing[key] = sharing
        others = [other for other in sharing if other is not operand]
        if not others or is_same:
            return
        written = places_in_memory(tensor)
        for other in others:
            places = places_in_memory(other.meta["val"])
            old = self.values[other]
            self.values[other] = _after_write(old, places, written, result)


def _after_write(
    value: Value, places: Tensor, written: Tensor, result: Neurons | Unknown
) -> Value:
    """The value of a tensor after a write to other places of its memory.

    places, written: the place in memory of every entry of both tensors.
    """
    if not places.numel() or not written.numel():
        return value
    size = 1 + int(max(places.max(), written.max()))
    is_written = torch.zeros(size, dtype=torch.bool)
    is_written[written] = True
    is_new = is_written[places]
    if not is_new.any():
        return value
    old = None
    if isinstance(value, Tensor):
        old = constant_labels(value)
    elif isinstance(value, Neurons):
        old = value.labels
    is_unknown = old is None and not is_new.all()
    if isinstance(result, Unknown) or is_unknown:
        return Unknown(places.shape)
    memory = torch.empty(size, dtype=torch.long)
    memory[written] = result.labels.reshape(written.shape)
    new = memory[places]
    if old is not None:
        new = torch.where(is_new, new, old)
    return Neurons(with_zero_strides(new))
