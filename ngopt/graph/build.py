"""The neural graph of a module or of its parameters: the way in."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ngopt.graph.core import NeuralGraph, ParameterSpec
from ngopt.graph.inference.infer import infer_graph
from ngopt.graph.inference.sequential import sequential_graph
from ngopt.graph.sharding import as_whole, is_sharded
from ngopt.graph.topology import unconnected
from ngopt.graph.tracing.capture import (
    NotCaptured,
    arguments,
    capture,
    guess_inputs,
    one_line,
)
from ngopt.graph.tracing.copies import Copier
from ngopt.graph.tracing.interpreter import trace
from ngopt.graph.tracing.isolation import isolated


def build_graph(
    source: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    example_input: Any = None,
) -> NeuralGraph:
    """The neural graph of a module, or of its parameters alone.

    source: a module, or an iterable of parameters or of (name, parameter) pairs, of
    which names,
        shapes and order decide.
    example_input: what the module takes, a tensor, a tuple of arguments, a dict of
    named ones, or
        both as `Inputs(args, kwargs)`. With it the graph is exact, whatever the module
        does inside. Without it a sequential module is read as it stands, and for others
        an input is guessed from the first layer; where that fails, the parameters
        decide, with a warning that names the module.

    A copy of the module runs, which shares the parameters: nothing of the module
    changes, no hook of the user runs, and random generators are put back.
    `ngopt.graph.tracing.isolation` says what is not protected. Of a module that
    `fully_shard` or `parallelize_module` has divided among processes, the copy is
    whole, without the values of the parameters.

    Raises ValueError if there is no parameter, an element is no tensor, a lazy module
    has no shape yet, FullyShardedDataParallel has made flat pieces of the parameters,
    or the module does not run on the example input.
    """
    if not isinstance(source, nn.Module):
        if example_input is not None:
            raise ValueError(
                "build_graph: example_input goes with a module; got parameters"
            )
        return infer_graph(*_specs(source))
    if is_sharded(source):
        source = as_whole(source, example_input)
    if any(is_lazy(t) for t in (*source.parameters(), *source.buffers())):
        source = _materialized(source, example_input)
    if not any(True for _ in source.parameters()):
        raise ValueError("build_graph: expected at least one parameter; got none")
    if example_input is not None:
        try:
            return _traced(source, example_input)
        except NotCaptured as error:
            return _from_parameters(
                source,
                f"the functions that {type(source).__name__} applies cannot be listed ({error})",
            )
    graph = graph_without_inputs(source)
    if graph is not None:
        return graph
    reason = f"no input for {type(source).__name__} could be guessed"
    return _from_parameters(source, f"{reason}; give example_input for an exact graph")


def _traced(model: nn.Module, example_input: Any) -> NeuralGraph:
    """The graph of what a module does to an example input.

    In training mode a module may skip layers at random. If some parameters are
    unconnected, it is traced in evaluation mode, too, and the graph that connects more
    elements is returned.
    """
    graph = _traced_in_mode(model, example_input, training=True)
    is_training = any(module.training for module in model.modules())
    if not is_training or not unconnected(graph):
        return graph
    try:
        other = _traced_in_mode(model, example_input, training=False)
    except Exception:  # it may take other inputs in evaluation mode
        return graph
    return max(graph, other, key=_connected_elements)


def _connected_elements(graph: NeuralGraph) -> int:
    loose = set(unconnected(graph))
    return sum(spec.numel for spec in graph.parameters if spec.name not in loose)


def _traced_in_mode(
    model: nn.Module, example_input: Any, training: bool
) -> NeuralGraph:
    """Raises ValueError if the module does not run, NotCaptured if it cannot be traced."""
    try:
        program = capture(model, example_input, training=training)
    except NotCaptured:
        raise
    except Exception as error:
        raise ValueError(
            f"build_graph: {type(model).__name__} does not run on the example input: "
            f"{one_line(error)}"
        ) from error
    try:
        return trace(program, model)
    except Exception:
        if not program.is_cut:
            raise
        program = capture(model, example_input, cut=False, training=training)
        return trace(program, model)


def _materialized(model: nn.Module, example_input: Any) -> nn.Module:
    """A copy of a lazy module whose parameters have the shapes that an example input
    gives them."""
    if example_input is None:
        tensors = (*model.named_parameters(), *model.named_buffers())
        name = next(name for name, tensor in tensors if is_lazy(tensor))
        raise ValueError(
            f"build_graph: '{name}' of a lazy module has no shape yet; give example_input, or run "
            f"the module before"
        )
    with isolated(model) as duplicate, torch.no_grad():
        args, kwargs = Copier().copy(arguments(example_input))
        duplicate(*args, **kwargs)
    return duplicate


def graph_without_inputs(model: nn.Module) -> NeuralGraph | None:
    """The graph of a sequential module, or what the first guessed input that fits
    shows."""
    graph = sequential_graph(model)
    if graph is not None:
        return graph
    for example in guess_inputs(model):
        try:
            return trace(capture(model, example), model)
        except Exception:
            continue
    return None


def _from_parameters(model: nn.Module, reason: str) -> NeuralGraph:
    warnings.warn(
        f"build_graph: names and shapes of the parameters decide, as {reason}",
        stacklevel=3,
    )
    return infer_graph(*_specs(model.named_parameters()))


def _specs(
    source: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
) -> tuple[list[ParameterSpec], bool]:
    """Names and shapes, and whether the names were given."""
    specs, named = [], True
    for i, item in enumerate(source):
        named = named and isinstance(item, tuple)
        name, tensor = item if isinstance(item, tuple) else (f"parameter {i}", item)
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"build_graph: expected tensors or (name, tensor) pairs; got "
                f"{type(tensor).__name__}"
            )
        specs.append(ParameterSpec.of(name, tensor))
    if not specs:
        raise ValueError("build_graph: expected at least one parameter; got none")
    return specs, named
