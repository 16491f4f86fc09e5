"""Brings a module to a graph of torch functions, with an example input or a guessed one."""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, fields, is_dataclass, replace
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

BATCH = 2  # rows of an example that are used: norms in training mode need more than one


class NotCaptured(Exception):
    """A module runs on the example input, but its functions cannot be listed."""


@dataclass(frozen=True)
class Inputs:
    """What a module is called with: positional and named arguments together."""

    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """The functions that a module applies to an input.

    state: for the names of nodes that stand for parameters, buffers and constants, these tensors.
    is_cut: whether the input was a few rows of the example.
    """

    graph: Graph
    state: dict[str, Tensor]
    is_cut: bool = False


def capture(model: nn.Module, example_input: Any, cut: bool = True) -> Program:
    """The functions that a module applies to an example input (see `arguments`).

    `torch.export` says it for whatever the input's values are. Where these decide what the module
    does (`if x.mean() > 0`), it cannot; then the module runs, and torch.fx records what it does to
    this input. With `cut`, a few rows of the input do if the module takes them. Of the module's
    state nothing changes. Raises whatever the module raises, or NotCaptured.
    """
    whole = arguments(example_input)
    few = tree_map(_few_rows, whole)
    same = not cut or all(a is b for a, b in zip(tree_leaves(few), tree_leaves(whole), strict=True))
    reason = None
    with _quiet(), torch.random.fork_rng(devices=[]):
        for function in (_export, _record):
            for args, kwargs in (whole,) if same else (few, whole):
                try:
                    return replace(
                        function(model, args, kwargs), is_cut=not same and args is few[0]
                    )
                except Exception as error:
                    reason = error
        args, kwargs = whole
        copy.deepcopy(model)(*args, **kwargs)
    raise NotCaptured(str(reason))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and the pages of log that an export which fails writes."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def arguments(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    """What a module is called with for an example input.

    That is a tensor, a tuple of arguments, a dict of named ones, or `Inputs`.
    """
    if isinstance(example_input, Inputs):
        return example_input.args, example_input.kwargs
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (example_input if isinstance(example_input, tuple) else (example_input,)), {}


def _few_rows(value: Any) -> Any:
    return (
        value[:BATCH]
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) > BATCH
        else value
    )


def _export(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Program:
    hook = model.register_forward_hook(lambda _module, _args, output: _tensors(output))
    try:
        program = torch.export.export(model, args, kwargs)
    finally:
        hook.remove()
    state = {}
    for spec in program.graph_signature.input_specs:
        name, target = getattr(spec.arg, "name", ""), spec.target or ""
        if spec.kind == InputKind.PARAMETER:
            state[name] = model.get_parameter(target)
        elif spec.kind == InputKind.BUFFER:
            state[name] = model.get_buffer(target)
        elif spec.kind in (InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ):
            state[name] = program.constants[target]
    return Program(inlined(program.graph_module), state)


def _record(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Program:
    """Runs the module once; of the functions that it calls, torch.fx keeps a list."""
    parameters = dict(model.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    own = {**parameters, **buffers}

    def run(state: dict[str, Tensor], args: tuple, kwargs: dict[str, Any]) -> Any:
        return _tensors(functional_call(model, state, args, kwargs))

    traced = make_fx(run, pre_dispatch=True, _error_on_data_dependent_ops=False)(own, args, kwargs)
    graph = inlined(traced)
    graph.eliminate_dead_code()  # such as what a condition was made of
    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    state = dict(zip(placeholders, own.values(), strict=False))
    attributes = {
        node.name: getattr(traced, node.target) for node in graph.nodes if node.op == "get_attr"
    }
    return Program(
        graph,
        state | {name: value for name, value in attributes.items() if isinstance(value, Tensor)},
    )


def inlined(module: GraphModule) -> Graph:
    """The functions of a module, those of its regions (autocast, no_grad) in their places."""
    graph = module.graph
    for node in list(graph.nodes):
        region, operands = _region(module, node)
        if region is None:
            continue
        inner = inlined(region)
        placeholders = [n for n in inner.nodes if n.op == "placeholder"]
        with graph.inserting_before(node):
            result = graph.graph_copy(inner, dict(zip(placeholders, operands, strict=True)))
        if isinstance(result, Node):
            node.replace_all_uses_with(result)
        for user in list(node.users):
            if user.target is operator.getitem and isinstance(result, (tuple, list)):
                user.replace_all_uses_with(result[user.args[1]])  # type: ignore[arg-type, index]
                graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)
    return graph


def _region(module: GraphModule, node: Node) -> tuple[GraphModule | None, list[Any]]:
    """The graph that a function applies once to the arguments behind it, and these.

    None if it is no such function.
    """
    graphs = []
    for place, argument in enumerate(node.args if node.op == "call_function" else ()):
        if isinstance(argument, Node) and argument.op == "get_attr":
            graphs.append((place, getattr(module, str(argument.target), None)))
    place, region = graphs[0] if len(graphs) == 1 else (0, None)
    if isinstance(region, GraphModule):
        behind = node.args[place + 1 :]
        operands = [a for a in behind if not isinstance(a, str)]  # a name may stand among them
        count = sum(n.op == "placeholder" for n in region.graph.nodes)
        is_loop = any(isinstance(a, (list, tuple)) for a in operands)
        if count == len(operands) and not is_loop:
            return region, operands
    return None, []


def _tensors(output: Any) -> list[Tensor]:
    """The tensors that a module returns.

    What else it returns, numbers or a cache of keys and values, is no part of the network.
    """
    found = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            values = [getattr(leaf, field.name) for field in fields(leaf)]
            found += _tensors(values)
    return found


def guess_inputs(model: nn.Module) -> Iterator[Tensor]:
    """Inputs that a module might take, judging by the first of its layers that has weights."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield torch.zeros(BATCH, 8, dtype=torch.long)
        elif isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            yield from (torch.randn(BATCH, module.in_channels, n) for n in (64, 1024))
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            yield from (torch.randn(BATCH, module.in_channels, n, n) for n in (224, 32, 28))
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            yield torch.randn(BATCH, module.in_channels, 16, 32, 32)
        elif isinstance(module, nn.Linear):
            yield torch.randn(BATCH, module.in_features)
            yield torch.randn(BATCH, 8, module.in_features)
        elif isinstance(module, nn.RNNBase):
            yield torch.randn(BATCH, 8, module.input_size)
        elif isinstance(module, nn.MultiheadAttention):
            yield torch.randn(BATCH, 8, module.embed_dim)
        else:
            continue
        return
