"""Calls of modules that have a rule of their own, in a program of functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from ngopt.graph.rules.registry import RULES
from ngopt.graph.tracing.capture import Program


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
        for name, module in _modules_around(function, model):
            if type(module) in RULES:
                # the name of a second call differs: layer@1
                inside.setdefault(name, []).append(function)
                modules[name] = module
                break  # the outermost module with a rule
    found: dict[Node, ModuleCall] = {}
    for name, functions in inside.items():
        call = _module_call(program, modules[name], functions)
        found |= dict.fromkeys(functions, call)
    return found


def _module_call(
    program: Program, module: nn.Module, functions: list[Node]
) -> ModuleCall:
    members = set(functions)
    inputs: dict[Node, None] = {}  # in their order
    output = functions[-1]
    for function in functions:
        for source in function.all_input_nodes:
            if source not in members and source.name not in program.state:
                inputs[source] = None
        if not members.issuperset(function.users):
            output = function
    return ModuleCall(module, functions, list(inputs), output)


def _modules_around(
    function: Node, model: nn.Module
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that call a function, from the outermost on, with a name for each
    call."""
    if function.op != "call_function":
        return
    for name, (path, _) in (function.meta.get("nn_module_stack") or {}).items():
        yield name, model.get_submodule(path.split("@")[0])
