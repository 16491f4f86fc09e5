"""Lists the torch functions that a module applies to an example or guessed input."""

import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from textwrap import shorten
from typing import Any

import torch
import torch.fx.config
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ngopt.graph.tracing.copies import Copier
from ngopt.graph.tracing.isolation import isolated
from ngopt.graph.tracing.torch_patches import patched_torch
from ngopt.graph.tracing.values import has_any

BATCH = 2  # rows of an example that are used: norms in training mode need two
MESSAGE = 200  # characters of an error that a warning repeats


class NotCaptured(Exception):
    """A module runs on the example input, but its functions cannot be listed, or the
    rules fail for them."""


@dataclass(frozen=True)
class Inputs:
    """What a module is called with: positional and named arguments together."""

    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """The functions that a module applies to an input.

    state: parameters, buffers and constants by the names of their nodes.
    is_cut: whether the input was a few rows of the example.
    """

    graph: Graph
    state: dict[str, Tensor]
    is_cut: bool = False


def one_line(error: Exception) -> str:
    """The beginning of the message of an error, which may be pages long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shorten(lines[0], MESSAGE, placeholder=" ...")


def packet_of(call: Node) -> Any:
    """The function that is called, the same for all types of its arguments."""
    # functions of Python, such as operator.getitem, have no overloads
    return getattr(call.target, "overloadpacket", call.target)


def capture(
    model: nn.Module, example_input: Any, cut: bool = True, training: bool = True
) -> Program:
    """The functions that a module applies to an example input (see `arguments`).

    `torch.export` lists them for any values of the input. If values decide which
    functions are applied (`if x.mean() > 0`), it fails; then torch.fx records the
    functions of this input. A copy of the module runs: module and input stay as they
    are, see `isolated`.
    cut: tries a few rows of the input first. training: False for evaluation mode.

    Raises the module's own error, or NotCaptured.
    """
    whole = arguments(example_input)
    inputs = [whole]
    if cut and any(map(_is_long, tree_leaves(whole))):
        few = tree_map(lambda x: x[:BATCH] if _is_long(x) else x, whole)
        inputs = [few, whole]
    reason = Exception()
    for function, given in product((_export, _record), inputs):
        try:
            program = _isolated(function, model, given, training)
            return replace(program, is_cut=given is not whole)
        except Exception as error:
            reason = error
    # the module's own error, if it does not run
    _isolated(lambda m, args, kwargs: m(*args, **kwargs), model, whole, training)
    raise NotCaptured(one_line(reason))


def _isolated(
    function: Callable, model: nn.Module, inputs: tuple[tuple, dict], training: bool
) -> Any:
    """A function of new copies of a module and of its inputs, as a forward that failed
    may have changed earlier copies."""
    with isolated(model) as duplicate, patched_torch():
        # an export that fails warns and logs; stack traces take a fifth of a capture,
        # and nothing reads them. What is set here is put back with all settings.
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        torch.fx.config.do_not_emit_stack_traces = True
        args, kwargs = Copier().copy(inputs)
        if not training:
            duplicate.eval()
        return function(duplicate, args, kwargs)


def arguments(example_input: Any) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a module for an example input: a tensor, a tuple of arguments, a
    dict of named ones, or `Inputs`."""
    if isinstance(example_input, Inputs):
        return example_input.args, example_input.kwargs
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    if isinstance(example_input, tuple):
        return example_input, {}
    return (example_input,), {}


def _is_long(value: Any) -> bool:
    """Whether it is a tensor of more rows than are used."""
    # others, such as sparse ones, have no slices
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided
    return is_dense and value.dim() > 0 and len(value) > BATCH


def _export(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Program:
    # export refuses outputs of types without a pytree, such as a dataclass
    hook = model.register_forward_hook(lambda module, args, output: _tensors(output))
    try:
        # strict is the default in torch 2.6
        program = torch.export.export(model, args, kwargs, strict=False)
    finally:
        hook.remove()
    state = {}
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        target = spec.target or ""
        kind = spec.kind
        if kind == InputKind.PARAMETER:
            state[name] = model.get_parameter(target)
        elif kind == InputKind.BUFFER:
            state[name] = model.get_buffer(target)
        elif kind in (InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ):
            state[name] = program.constants[target]
    graph = inlined(program.graph_module)
    for call in graph.nodes:
        call.meta["val"] = tree_map(_with_sizes, call.meta.get("val"))
    return Program(_for_cpu(graph), state)


def _with_sizes(value: Any) -> Any:
    """A value of a program with the size 2 for all sizes that depend on data."""
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expression = value.node.expr
        sizes = dict.fromkeys(expression.free_symbols, BATCH)
        return value.node.pytype(expression.xreplace(sizes))
    if not isinstance(value, Tensor) or not has_any(value.shape, torch.SymInt):
        return value
    shape = list(map(_with_sizes, value.shape))
    return torch.empty(shape, dtype=value.dtype, device="meta")


def _record(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Program:
    """Runs the module once, while torch.fx records the functions that it calls."""
    # parameters themselves, as they are found by `id`; buffers may change in the run
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    tensors |= {name: buffer.clone() for name, buffer in model.named_buffers()}

    # the inputs are named after its arguments
    def run(state: dict[str, Tensor], args: tuple, kwargs: dict) -> list[Tensor]:
        return _tensors(functional_call(model, state, args, kwargs))

    # pre_dispatch: the functions of an export, linear instead of t and addmm
    trace = make_fx(run, pre_dispatch=True, _error_on_data_dependent_ops=False)
    given = (tensors, args, kwargs)
    traced = trace(*given)
    copies = tree_map_only(Tensor, lambda x: x.detach().clone(), given)
    _Located(traced, garbage_collect_values=False).run(*copies)
    graph = inlined(traced)
    graph.eliminate_dead_code()  # such as the computation of a condition
    # placeholders are never dead code: first the state, then the inputs
    names = [call.name for call in graph.find_nodes(op="placeholder")]
    state = dict(zip(names, tensors.values(), strict=False))
    for call in graph.find_nodes(op="get_attr"):
        value = getattr(traced, str(call.target))
        if isinstance(value, Tensor):
            state[call.name] = value
    return Program(_for_cpu(graph), state)


def _for_cpu(graph: Graph) -> Graph:
    """Replaces devices in arguments by the CPU, where rules compute."""

    def moved(value: Any) -> Any:
        return torch.device("cpu") if isinstance(value, torch.device) else value

    for call in graph.nodes:
        call.args = map_aggregate(call.args, moved)
        call.kwargs = map_aggregate(call.kwargs, moved)
    return graph


class _Located(Interpreter):
    """Runs a graph once more, to record which results share memory."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = tree_map_only(Tensor, Tensor.detach, result)
        return result


def inlined(module: GraphModule) -> Graph:
    """The functions of a module, with those of regions (autocast, no_grad) inlined."""
    graph = module.graph
    # a list, as nodes are erased in the loop
    for call in list(graph.nodes):
        region, operands = _region(module, call)
        if region is None:
            continue
        inner = inlined(region)
        given = zip(inner.find_nodes(op="placeholder"), operands, strict=True)
        with graph.inserting_before(call):
            result = graph.graph_copy(inner, dict(given))
        if isinstance(result, Node):
            call.replace_all_uses_with(result)
        for user in list(call.users):
            if user.target is operator.getitem and isinstance(result, (tuple, list)):
                item = result[user.args[1]]  # type: ignore[index]
                user.replace_all_uses_with(item)  # type: ignore[arg-type]
                graph.erase_node(user)
        if not call.users:
            graph.erase_node(call)
    return graph


def _region(module: GraphModule, call: Node) -> tuple[GraphModule | None, list[Any]]:
    """The graph that a function applies once to the arguments behind it, and these
    arguments; None if it applies none."""
    attributes = [a for a in call.args if isinstance(a, Node) and a.op == "get_attr"]
    # torch.cond applies one of two regions
    if call.op != "call_function" or len(attributes) != 1:
        return None, []
    attribute = attributes[0]
    region = getattr(module, str(attribute.target), None)
    if not isinstance(region, GraphModule):
        return None, []
    arguments_behind = call.args[call.args.index(attribute) + 1 :]
    # a name may be among them
    operands = [a for a in arguments_behind if not isinstance(a, str)]
    # loops have lists of operands
    is_loop = has_any(operands, (list, tuple))
    if is_loop or len(region.graph.find_nodes(op="placeholder")) != len(operands):
        return None, []
    return region, operands


def _tensors(output: Any) -> list[Tensor]:
    """The tensors that a module returns, without numbers or caches."""
    tensors = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for field in fields(leaf):
                tensors += _tensors(getattr(leaf, field.name))
    return tensors


def guess_inputs(model: nn.Module) -> Iterator[Tensor]:
    """Inputs that fit the first layer with weights of a module."""
    device = next((p.device for p in model.parameters()), None)
    # a generator of its own: that of the user stays as it is
    generator = torch.Generator("cpu").manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            # row 0 is in every table
            yield torch.zeros(BATCH, 8, dtype=torch.long, device=device)
            return
        shapes = _guessed_shapes(module)
        for shape in shapes:
            example = torch.randn(BATCH, *shape, generator=generator, device="cpu")
            yield example.to(device)
        if shapes:
            return


def _guessed_shapes(module: nn.Module) -> list[tuple[int, ...]]:
    """Possible shapes of one row of a layer's input; none without weights."""
    match module:
        case nn.Conv1d(in_channels=n) | nn.ConvTranspose1d(in_channels=n):
            return [(n, 64), (n, 1024)]
        case nn.Conv2d(in_channels=n) | nn.ConvTranspose2d(in_channels=n):
            # ImageNet, CIFAR and MNIST
            return [(n, 224, 224), (n, 32, 32), (n, 28, 28)]
        case nn.Conv3d(in_channels=n) | nn.ConvTranspose3d(in_channels=n):
            return [(n, 16, 32, 32)]
        case nn.Linear(in_features=n):
            return [(n,), (8, n)]
        case nn.RNNBase(input_size=n) | nn.MultiheadAttention(embed_dim=n):
            return [(8, n)]
    return []
