"""`build_graph`: the neural graph of a module, or of its parameters alone."""

import logging
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ngopt.graph.connectivity import unconnected
from ngopt.graph.groups_and_blocks import ParameterSpec
from ngopt.graph.inference.from_parameters import infer_graph
from ngopt.graph.inference.from_sequential import sequential_graph
from ngopt.graph.neural_graph import NeuralGraph
from ngopt.graph.sharded_modules import as_whole, is_sharded
from ngopt.graph.tracing.capture import (
    MESSAGE,
    NotCaptured,
    Program,
    arguments,
    capture,
    guess_inputs,
    one_line,
    packet_of,
)
from ngopt.graph.tracing.copies import Copier
from ngopt.graph.tracing.interpreter import Traced, trace
from ngopt.graph.tracing.isolation import isolated

aten = torch.ops.aten

LONG = 2000
"""Number of functions above which a trace takes seconds, and logs that it does."""
UNBATCHED_DIMS = {aten.linear: 1, aten.conv1d: 2, aten.conv2d: 3, aten.conv3d: 4}
"""Axes of the input of a layer if there is no batch axis."""

logger = logging.getLogger("ngopt")


def build_graph(
    source: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    example_input: Any = None,
) -> NeuralGraph:
    """The neural graph of a module, or of its parameters alone.

    A copy of the module runs, which shares the parameters. The module stays as it is,
    its hooks do not run, and random generators are put back;
    `ngopt.graph.tracing.isolation` lists what is not protected. For a module that
    `fully_shard` or `parallelize_module` has sharded, the copy is whole, without the
    values of the parameters.

    Warns if a layer reads the example input without a batch axis, or if an input is not
    followed to any layer and parameters are unconnected. Images in a list need no batch
    axis if the module makes a batch of them.

    Args:
        source: A module, or an iterable of parameters or of (name, parameter) pairs.
            From parameters, names, shapes and order give the graph.
        example_input: Input of the module: a tensor, a tuple of arguments, a dict of
            named ones, or `Inputs(args, kwargs)`. With it the graph is exact. Without
            it, layers of a sequential module give the graph; for other modules an input
            is guessed from the first layer. If that fails, the parameters give it, with
            a warning that names the module.

    Raises:
        ValueError: If there is no parameter, an element is no tensor, a lazy module has
            no shape yet, FullyShardedDataParallel has flattened the parameters, or the
            module does not run on the example input.
    """
    if not isinstance(source, nn.Module):
        if example_input is not None:
            raise ValueError(
                "build_graph: expected a module with example_input; got parameters"
            )
        return infer_graph(*_specs(source))
    if is_sharded(source):
        source = as_whole(source, example_input)
    named = (*source.named_parameters(), *source.named_buffers())
    lazy_name = next((name for name, tensor in named if is_lazy(tensor)), None)
    if lazy_name is not None and example_input is None:
        raise ValueError(
            f"build_graph: '{lazy_name}' of a lazy module has no shape yet; give "
            "example_input, or run the module before"
        )
    if lazy_name is not None:
        # a copy, with the shapes that the example input gives it
        with isolated(source) as duplicate, torch.no_grad():
            args, kwargs = Copier().copy(arguments(example_input))
            duplicate(*args, **kwargs)
        source = duplicate
    if next(source.parameters(), None) is None:
        raise ValueError("build_graph: expected at least one parameter; got none")
    name = type(source).__name__
    if example_input is not None:
        try:
            return _traced(source, example_input)
        except NotCaptured as error:
            reason = f"{name} cannot be traced ({error})"
    else:
        graph = graph_without_inputs(source)
        if graph is not None:
            return graph
        reason = f"no input for {name} could be guessed; give example_input for an "
        reason += "exact graph"
    warnings.warn(
        f"build_graph: graph inferred from names and shapes, as {reason}", stacklevel=2
    )
    return infer_graph(*_specs(source.named_parameters()))


def graph_without_inputs(model: nn.Module) -> NeuralGraph | None:
    """The graph of a sequential module, or of the first guessed input that runs."""
    graph = sequential_graph(model)
    if graph is not None:
        return graph
    for example in guess_inputs(model):
        try:
            return trace(capture(model, example), model).graph
        except Exception:
            continue
    return None


def _traced(model: nn.Module, example_input: Any) -> NeuralGraph:
    """The graph of what a module does to an example input.

    In training mode a module may skip layers at random. If some parameters are
    unconnected, it is traced in evaluation mode too, and the graph that connects more
    elements is returned.
    """
    traced = [_traced_in_mode(model, example_input, training=True)]
    is_training = any(module.training for module in model.modules())
    if is_training and unconnected(traced[0].graph):
        # it may take other inputs in evaluation mode
        with suppress(Exception):
            traced.append(_traced_in_mode(model, example_input, training=False))

    def connected_elements(traced: Traced) -> int:
        graph = traced.graph
        loose = unconnected(graph)
        return sum(spec.numel for spec in graph.parameters if spec.name not in loose)

    graph, lost = max(traced, key=connected_elements)
    loose = unconnected(graph)
    if loose and lost:
        warnings.warn(
            f"build_graph: inputs of {type(model).__name__} are lost: "
            f"{shorten(', '.join(lost), MESSAGE)}; {len(loose)} of "
            f"{len(graph.parameters)} parameters are unconnected, and are optimized "
            "without their neighbours",
            stacklevel=4,
        )
    return graph


def _traced_in_mode(model: nn.Module, example_input: Any, training: bool) -> Traced:
    """Raises ValueError if the module does not run, NotCaptured if it cannot be
    traced."""
    name = type(model).__name__
    try:
        program = capture(model, example_input, training=training)
    except NotCaptured:
        raise
    except Exception as error:
        raise ValueError(
            f"build_graph: {name} does not run on the example input: {one_line(error)}"
        ) from error
    if training:
        _check_example(program, name)
        count = len(program.graph.nodes)
        if count > LONG:
            logger.warning(
                "build_graph: tracing %s takes long, once, as it applies %d functions: "
                "loops are traced step by step. To shorten it, pass "
                "graph=build_graph(module, shorter_example) to the optimizer, or "
                "named_parameters() without model=.",
                name,
                count,
            )
    try:
        try:
            return trace(program, model)
        except Exception:
            if not program.is_cut:
                raise
            program = capture(model, example_input, cut=False, training=training)
            return trace(program, model)
    except Exception as error:
        raise NotCaptured(one_line(error)) from error


def _specs(
    source: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
) -> tuple[list[ParameterSpec], bool]:
    """Names and shapes, and whether the names were given."""
    if isinstance(source, Mapping):
        raise ValueError(
            "build_graph: expected a module, tensors or (name, tensor) pairs; got "
            f"{type(source).__name__}. Pass the .items() of parameters by name; a "
            "state_dict also has buffers."
        )
    specs = []
    are_named = True
    for i, item in enumerate(source):
        if isinstance(item, tuple):
            name, tensor = item
        else:
            name, tensor = f"parameter {i}", item
            are_named = False
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(
                f"build_graph: expected tensors or (name, tensor) pairs; got "
                f"{type(tensor).__name__}"
            )
        specs.append(ParameterSpec.of(name, tensor))
    if not specs:
        raise ValueError("build_graph: expected at least one parameter; got none")
    return specs, are_named


def _check_example(program: Program, name: str) -> None:
    """Raises ValueError if a layer would multiply integers by its weight, which fails
    where numbers are computed. Warns if a layer reads an input without a batch axis.

    name: of the module.
    """
    shapes = []  # of the inputs
    for call in program.graph.nodes:
        value = call.meta.get("val")
        is_input = call.op == "placeholder" and call.name not in program.state
        if is_input and isinstance(value, Tensor):
            shapes.append(value.shape)
        dims = UNBATCHED_DIMS.get(packet_of(call))
        if dims is None:
            continue
        layer = packet_of(call).__name__
        operands: Any = call.args[:2]
        x, weight = (operand.meta.get("val") for operand in operands)
        if x is None or weight is None:
            continue
        is_integer = not (x.is_floating_point() or x.is_complex())
        if weight.is_floating_point() and is_integer:
            raise ValueError(
                f"build_graph: {name} does not run on the example input: {layer} "
                f"expects a tensor of {weight.dtype}; got {x.dtype}"
            )
        # the only channel may be taken for a batch of one
        if x.dim() == dims and len(x) > 1 and x.shape in shapes:
            warnings.warn(
                "build_graph: expected an example_input with a batch axis first; got "
                f"shape {tuple(x.shape)}, which {layer} reads without one. Pass "
                "example_input.unsqueeze(0).",
                stacklevel=5,
            )
            return
