"""The neural graph of an optimizer's parameters: inferred, given or traced.

A graph may contain parameters that are not optimized. Parameters that are not in a
given or traced graph become components of their own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import _C, Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.jit._trace import is_tracing
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from ngopt.devices import is_transformed, without_autocast
from ngopt.graph import Inputs, NeuralGraph, ParameterSpec, build_graph
from ngopt.graph.build import graph_without_inputs
from ngopt.graph.inference.from_parameters import infer_graph
from ngopt.graph.parameter_order import merged_order
from ngopt.graph.sharded_modules import as_whole, is_sharded
from ngopt.graph.tracing.capture import one_line
from ngopt.graph.tracing.copies import Copier
from ngopt.graph.transforms import join_graphs
from ngopt.optimizer.param_groups import Group, group_names, group_specs, group_tensors
from ngopt.user_warnings import warn

OrderedGraph = tuple[NeuralGraph, list[int]]
"""A graph, and positions of its parameters: the optimizer's in their order, then all
others."""


class GraphSource:
    """Makes the graph of the parameters in an optimizer's groups.

    is_exact: whether the graph is traced or given, not inferred from names and shapes.
    awaits_forward: whether a forward pass is still needed for the graph.
    has_new_inputs: whether inputs were recorded that are not traced yet.
    recorder: waits for a forward pass; None if none is awaited any more.
    """

    is_exact = True
    awaits_forward = False
    has_new_inputs = False
    recorder: "Recorder | None" = None

    def graph_of(self, groups: Sequence[Group]) -> OrderedGraph:
        """Raises ValueError if the groups do not fit the network."""
        raise NotImplementedError

    def stop_recording(self) -> None:
        """Stops waiting for a forward pass."""
        if self.recorder is not None:
            self.recorder.remove()
            self.recorder = None

    def record_again(self) -> None:
        """Waits for the next forward pass, of a module with other parameters."""


class InferredGraph(GraphSource):
    """Inferred from names, shapes and order of the parameters; see `infer_graph`."""

    is_exact = False

    def graph_of(self, groups: Sequence[Group]) -> OrderedGraph:
        specs = group_specs(groups)
        is_named = all("param_names" in group for group in groups)
        if not is_named or len(set(group_names(groups))) < len(specs):
            return _inferred_by_order(groups, specs)
        names = merged_order([group["param_names"] for group in groups])
        position = dict(zip(names, range(len(names)), strict=True))
        in_order = sorted(specs, key=lambda spec: position[spec.name])
        graph = infer_graph(in_order, True)
        return graph, [position[spec.name] for spec in specs]


def _inferred_by_order(
    groups: Sequence[Group], specs: Sequence[ParameterSpec]
) -> OrderedGraph:
    """The graph of parameters without names.

    A group of vectors only, such as those without weight decay, does not show which
    layers they belong to. Each of its vectors is a component.
    """
    chain: list[int] = []
    vectors: list[int] = []
    start = 0
    for group in groups:
        positions = range(start, start + len(group["params"]))
        start = positions.stop
        has_matrix = any(len(specs[i].shape) > 1 for i in positions)
        (chain if has_matrix else vectors).extend(positions)
    if not chain or not vectors:
        return infer_graph(specs), list(range(len(specs)))
    components = [[specs[i] for i in chain]]
    components += [[specs[i]] for i in vectors]
    order = np.argsort(chain + vectors).tolist()  # the inverse permutation
    return join_graphs(*map(infer_graph, components)), order


class GivenGraph(GraphSource):
    """A graph from the user.

    Parameters are matched by name if all names are in the graph, else by order.
    """

    def __init__(self, graph: NeuralGraph, groups: Sequence[Group]):
        if not isinstance(graph, NeuralGraph):
            got = type(graph).__name__
            raise ValueError(f"NGOptimizer: graph: expected a NeuralGraph; got {got}")
        self.graph = graph
        self.tensors = self._match(groups)

    def graph_of(self, groups: Sequence[Group]) -> OrderedGraph:
        known = set(self.tensors) - {None}
        present = set(group_tensors(groups))
        # a program has replaced all parameters, as Accelerate does by parts of them
        if len(present) == len(known) and present.isdisjoint(known):
            self.tensors = self._match(groups)
        return _with_components(self.graph, self.tensors, groups)

    def _match(self, groups: Sequence[Group]) -> list[Tensor | None]:
        """The tensor of each parameter of the graph; None if it is not optimized."""
        tensors: list[Tensor | None] = [None] * len(self.graph.parameters)
        positions = _positions(group_specs(groups), self.graph.parameters)
        for position, p in zip(positions, group_tensors(groups), strict=True):
            tensors[position] = p
        return tensors


class TracedGraph(GraphSource):
    """Traced from a module and the inputs of its first forward pass in training.

    Until that pass it is the graph that `build_graph` makes without inputs.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]):
        if not isinstance(model, nn.Module):
            is_class = isinstance(model, type)
            got = f"the class {model.__name__}" if is_class else type(model).__name__
            raise ValueError(
                f"NGOptimizer: model: expected a torch.nn.Module; got {got}"
            )
        in_model = set(model.parameters())
        for name, p in zip(group_names(groups), group_tensors(groups), strict=True):
            if p not in in_model:
                raise ValueError(
                    "NGOptimizer: model: expected the module that the parameters "
                    f"belong to; '{name}', of shape {tuple(p.shape)}, is none of this "
                    f"{type(model).__name__}'s"
                )
        self.model: nn.Module | None = unwrapped(model)
        self.recorder: Recorder | None = Recorder(model)
        self.graph: NeuralGraph | None = None
        self.tensors: list[Tensor] = []

    @property
    def has_new_inputs(self) -> bool:
        return self.recorder is not None and self.recorder.inputs is not None

    @property
    def awaits_forward(self) -> bool:
        is_recording = self.recorder is not None and not self.has_new_inputs
        return is_recording and self.graph is None

    def record_again(self) -> None:
        if self.model is not None and self.recorder is None:
            self.recorder = Recorder(self.model)

    def graph_of(self, groups: Sequence[Group]) -> OrderedGraph:
        if self.model is not None:
            self.tensors = list(self.model.parameters())
            if self.has_new_inputs or not self._fits():
                self.graph = self._trace(self.model)
        assert self.graph is not None
        return _with_components(self.graph, self.tensors, groups)

    def _fits(self) -> bool:
        """Whether the graph has the shapes of the module's parameters."""
        if self.graph is None:
            return False
        shapes = [ParameterSpec.of("", p).paired.shape for p in self.tensors]
        return shapes == [spec.shape for spec in self.graph.parameters]

    def _trace(self, model: nn.Module) -> NeuralGraph:
        """With gradients, without autocast; random number generators are restored."""
        inputs = None if self.recorder is None else self.recorder.inputs
        devices = {p.device for p in model.parameters()}
        with (
            torch.enable_grad(),
            without_autocast(devices),
            torch.random.fork_rng([d.index for d in devices if d.type == "cuda"]),
        ):
            if inputs is None:
                return _graph_without_forward(model)
            self.stop_recording()
            try:
                return build_graph(model, inputs)
            except Exception as error:
                reason = f"tracing {type(model).__name__} failed: {one_line(error)}"
                return _graph_from_parameters(model, reason)

    def __getstate__(self) -> dict[str, Any]:
        """A traced graph needs the parameters only; some modules cannot be pickled."""
        if self.graph is None:
            return self.__dict__
        return {**self.__dict__, "model": None, "recorder": None}


def _graph_without_forward(model: nn.Module) -> NeuralGraph:
    name = type(model).__name__
    if is_sharded(model):
        model = as_whole(model, None)
    graph = graph_without_inputs(model)
    if graph is not None:
        return graph
    reason = (
        f"no training forward of model={name} was recorded and no input for {name} "
        "could be guessed. Pass the module that is called in training as model=, or "
        "pass graph=build_graph(module, example_input)"
    )
    return _graph_from_parameters(model, reason)


def _graph_from_parameters(model: nn.Module, reason: str) -> NeuralGraph:
    warn(f"graph inferred from names and shapes, as {reason}")
    return build_graph(model.named_parameters())


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside wrappers for compilation or several devices."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        # of torch.compile
        elif isinstance(model._modules.get("_orig_mod"), nn.Module):
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def _positions(
    specs: Sequence[ParameterSpec], in_graph: Sequence[ParameterSpec]
) -> list[int]:
    """Positions in the graph: by name, or by order if the graph lacks a name."""
    by_name = {spec.name: i for i, spec in enumerate(in_graph)}
    positions = list(range(len(in_graph)))
    if by_name.keys() >= {spec.name for spec in specs}:
        positions = [by_name[spec.name] for spec in specs]
    elif len(specs) != len(in_graph):
        raise ValueError(
            f"NGOptimizer: graph: expected {len(in_graph)} parameters, or names that "
            f"are in it; got {len(specs)} parameters with other names"
        )
    for spec, position in zip(specs, positions, strict=True):
        _check_shape(spec, in_graph[position])
    return positions


def _check_shape(spec: ParameterSpec, in_graph: ParameterSpec) -> None:
    shape = spec.paired.shape
    if shape != in_graph.shape:
        raise ValueError(
            f"NGOptimizer: '{spec.name}': graph expects shape {in_graph.shape}; "
            f"got {shape}"
        )


def _with_components(
    graph: NeuralGraph, tensors: Sequence[Tensor | None], groups: Sequence[Group]
) -> OrderedGraph:
    """Adds parameters that are not in the graph as components of their own.

    tensors: of the graph's parameters.
    """
    positions = dict(zip(tensors, range(len(tensors)), strict=True))
    order: list[int] = []
    extra: list[ParameterSpec] = []
    for spec, p in zip(group_specs(groups), group_tensors(groups), strict=True):
        position = positions.get(p)
        if position is None:
            position = len(graph.parameters) + len(extra)
            extra.append(spec)
        else:
            _check_shape(spec, graph.parameters[position])
        order.append(position)
    if extra:
        graph = join_graphs(graph, infer_graph(extra))
    others = set(range(len(graph.parameters))).difference(order)
    return graph, [*order, *sorted(others)]


class Recorder:
    """A forward pre-hook that stores detached inputs of a module, then removes itself.

    It waits for a forward pass with gradients in training mode. Until then it stores
    the inputs of passes with gradients in evaluation mode. It skips passes without
    gradients and those that a compiler, a tracer or torch.func runs.
    """

    def __init__(self, model: nn.Module):
        self.inputs: Inputs | None = None
        self._handle: RemovableHandle | None = model.register_forward_pre_hook(
            self, with_kwargs=True
        )

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or _is_traced(args, kwargs):
            return
        # copies, as the forward pass may change objects among the inputs
        inputs = Copier(Tensor.detach).copy((args, kwargs))
        self.inputs = Inputs(*tree_map_only(nn.Parameter, Tensor.detach, inputs))
        if module.training:
            self.remove()

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _is_traced(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a compiler, a tracer or torch.func runs the forward pass."""
    # whatever another thread does: torch's own functions for this read global flags
    if torch.compiler.is_dynamo_compiling() or is_tracing() or is_transformed():
        return True
    if _C._dispatch_tls_is_dispatch_key_included(_C.DispatchKey.PreDispatch):
        return True
    if _C._get_dispatch_mode(_C._TorchDispatchModeKey.PROXY) is not None:
        return True
    leaves = tree_leaves((args, kwargs))
    return any(isinstance(leaf, (FakeTensor, torch.fx.Proxy)) for leaf in leaves)
