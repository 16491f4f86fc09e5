"""Where the graph of an optimizer's parameters comes from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from ngopt.graph import NeuralGraph, ParameterSpec, build_graph
from ngopt.graph.build import graph_without_inputs
from ngopt.graph.connectivity import unconnected
from ngopt.graph.inference.from_parameters import infer_graph
from ngopt.graph.parameter_order import merged_order
from ngopt.graph.sharded_modules import as_whole, is_sharded
from ngopt.graph.tracing.capture import one_line
from ngopt.graph.transforms import join_graphs
from ngopt.optimizer.input_recorder import Recorder

NAMED_UNCONNECTED = 5  # names in the line about a graph


class Wiring(NamedTuple):
    """A graph of an optimizer's parameters and others.

    order: the numbers of the graph's parameters, the optimizer's first, in their order.
    """

    graph: NeuralGraph
    order: list[int]


class Source(Protocol):
    """A way to the graph of the parameters in an optimizer's groups."""

    def wire(self, groups: Sequence[dict[str, Any]]) -> Wiring:
        """Raises ValueError if the groups do not fit what is known of the network."""
        ...

    exact: bool
    """Whether the network itself says how parameters are connected."""

    @property
    def awaits_forward(self) -> bool:
        """Whether a forward pass is still to show more than there is to see now."""
        ...

    @property
    def has_news(self) -> bool:
        """Whether a forward pass has been seen that is in no graph yet."""
        ...

    def settle(self) -> None:
        """Waits for no forward pass any more."""
        ...


class Inferred:
    """Names, shapes and order of the parameters decide; see `infer_graph`."""

    exact = awaits_forward = has_news = False

    def settle(self) -> None:
        pass

    def wire(self, groups: Sequence[dict[str, Any]]) -> Wiring:
        specs = group_specs(groups)
        named = all("param_names" in group for group in groups)
        named = named and len({spec.name for spec in specs}) == len(specs)
        if not named:
            return _by_order(groups, specs)
        order = merged_order([group["param_names"] for group in groups])
        by_name = {spec.name: spec for spec in specs}
        graph = infer_graph([by_name[name] for name in order], named)
        places = {name: position for position, name in enumerate(order)}
        return Wiring(graph, [places[spec.name] for spec in specs])


def _by_order(
    groups: Sequence[dict[str, Any]], specs: Sequence[ParameterSpec]
) -> Wiring:
    """The order of parameters without names decides.

    Groups of vectors alone, as those without weight decay, do not say which layers
    these belong to: each vector is a component.
    """
    numbers = iter(range(len(specs)))
    of_groups = [[next(numbers) for _ in group["params"]] for group in groups]
    vectors: list[int] = []
    for own in of_groups:
        if all(len(specs[i].shape) < 2 for i in own):
            vectors += own
    if len(vectors) in (0, len(specs)):
        return Wiring(infer_graph(specs), list(range(len(specs))))
    apart = set(vectors)
    chain = [i for i in range(len(specs)) if i not in apart]
    graphs = [infer_graph([specs[i] for i in chain])]
    graphs += [infer_graph([specs[i]]) for i in vectors]
    places = {i: place for place, i in enumerate([*chain, *vectors])}
    return Wiring(join_graphs(*graphs), [places[i] for i in range(len(specs))])


class Given:
    """A graph that the user made. Named parameters are found in it by name, others by
    order.

    Parameters that are added later become components of their own.
    """

    exact = True
    awaits_forward = has_news = False

    def __init__(self, graph: NeuralGraph, groups: Sequence[dict[str, Any]]):
        if not isinstance(graph, NeuralGraph):
            raise ValueError(
                f"NGOptimizer: graph: expected a NeuralGraph; got {type(graph).__name__}"
            )
        self.graph = graph
        self.owners = self._match(groups)

    def settle(self) -> None:
        pass

    def wire(self, groups: Sequence[dict[str, Any]]) -> Wiring:
        known = {id(p) for p in self.owners if p is not None}
        own = {id(p) for p in group_tensors(groups)}
        # a program has replaced all, as Accelerate does by parts of them
        if len(own) == len(known) and own.isdisjoint(known):
            self.owners = self._match(groups)
        return _with_components(self.graph, self.owners, groups)

    def _match(self, groups: Sequence[dict[str, Any]]) -> list[Tensor | None]:
        """Whose place each parameter of the graph is."""
        owners: list[Tensor | None] = [None] * len(self.graph.parameters)
        places = _find(self.graph.parameters, group_specs(groups))
        for place, p in zip(places, group_tensors(groups), strict=True):
            owners[place] = p
        return owners


class Traced:
    """The graph of a module, traced with the inputs of its first training forward.

    Until that pass it is what `build_graph` can tell without inputs. Parameters of the
    optimizer that are not the module's become components.
    """

    exact = True

    def __init__(self, model: nn.Module, groups: Sequence[dict[str, Any]]):
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"NGOptimizer: model: expected a torch.nn.Module; got {_described(model)}"
            )
        own = {id(p) for p in model.parameters()}
        for name, p in zip(group_names(groups), group_tensors(groups), strict=True):
            if id(p) not in own:
                raise ValueError(
                    f"NGOptimizer: model: expected the module that the parameters belong to; "
                    f"'{name}', of shape {tuple(p.shape)}, is none of this {type(model).__name__}'s"
                )
        self.model: nn.Module | None = unwrapped(model)
        self.recorder: Recorder | None = Recorder(model)
        self.graph: NeuralGraph | None = None
        self.owners: list[Tensor] = []

    @property
    def has_news(self) -> bool:
        return self.recorder is not None and self.recorder.inputs is not None

    @property
    def awaits_forward(self) -> bool:
        return self.recorder is not None and self.graph is None and not self.has_news

    def settle(self) -> None:
        if self.recorder is not None:
            self.recorder.remove()
            self.recorder = None

    def wire(self, groups: Sequence[dict[str, Any]]) -> Wiring:
        if self.model is not None:
            self.owners = list(self.model.parameters())
            if (
                self.graph is None
                or self.has_news
                or not _fits(self.graph, self.owners)
            ):
                self.graph = self._trace(self.model)
        assert self.graph is not None
        return _with_components(self.graph, self.owners, groups)

    def _trace(self, model: nn.Module) -> NeuralGraph:
        inputs = None if self.recorder is None else self.recorder.inputs
        with _undisturbed(model):
            if inputs is None:
                return _without_inputs(model)
            self.settle()
            try:
                return build_graph(model, inputs)
            except Exception as error:
                reason = f"tracing {type(model).__name__} failed: {one_line(error)}"
                return _from_parameters(model, reason)

    def __getstate__(self) -> dict[str, Any]:
        """Copies of a traced optimizer need the parameters alone, and modules may not
        pickle."""
        if self.graph is None:
            return self.__dict__
        return {**self.__dict__, "model": None, "recorder": None}


def _without_inputs(model: nn.Module) -> NeuralGraph:
    """The graph of a module whose forward has not run."""
    name = type(model).__name__
    if is_sharded(model):
        model = as_whole(model, None)
    graph = graph_without_inputs(model)
    if graph is not None:
        return graph
    reason = (
        f"no training forward of model={name} was recorded and no input for {name} could be "
        f"guessed. Pass the module that is called in training as model=, or pass "
        f"graph=build_graph(module, example_input)"
    )
    return _from_parameters(model, reason)


def _from_parameters(model: nn.Module, reason: str) -> NeuralGraph:
    warnings.warn(
        f"NGOptimizer: names and shapes of the parameters decide, as {reason}",
        stacklevel=4,
    )
    return build_graph(model.named_parameters())


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside those that compile it or run it on several devices."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        # of torch.compile
        elif isinstance(model._modules.get("_orig_mod"), nn.Module):
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def describe(graph: NeuralGraph) -> str:
    """One line: how many tensors are in the graph, and which are unconnected."""
    loose = unconnected(graph)
    count = len(graph.parameters)
    if not loose:
        return f"graph: {graph.numel:,} parameters in {count} tensors, all connected"
    names = loose[:NAMED_UNCONNECTED]
    if len(loose) > len(names):
        names.append("...")
    origin = (
        "graph inferred from names and shapes;" if any(graph.inferred) else "graph:"
    )
    return (
        f"{origin} {len(loose)} of {count} tensors are unconnected ({', '.join(names)})"
    )


def group_tensors(groups: Iterable[dict[str, Any]]) -> list[Tensor]:
    """All parameters, in order."""
    return [p for group in groups for p in group["params"]]


def group_names(groups: Iterable[dict[str, Any]]) -> list[str]:
    """Names of all parameters; numbers where there are none.

    Raises ValueError if a group has not as many names as parameters.
    """
    names: list[str] = []
    for i, group in enumerate(groups):
        count = len(group["params"])
        own = group.get("param_names")
        if own is None:
            own = [f"parameter {len(names) + k}" for k in range(count)]
        if len(own) != count:
            raise ValueError(
                f"NGOptimizer: param_groups[{i}]: expected a name in 'param_names' for each of "
                f"its {count} parameters; got {len(own)}"
            )
        names += own
    return names


def group_specs(groups: Sequence[dict[str, Any]]) -> list[ParameterSpec]:
    """Names and shapes of all parameters.

    Raises ValueError if a parameter of a lazy module has no shape yet.
    """
    specs = []
    for name, p in zip(group_names(groups), group_tensors(groups), strict=True):
        if is_lazy(p):
            raise ValueError(
                f"NGOptimizer: '{name}' of a lazy module has no shape yet; run the module before"
            )
        specs.append(ParameterSpec.of(name, p))
    return specs


def _find(given: Sequence[ParameterSpec], specs: Sequence[ParameterSpec]) -> list[int]:
    """Positions of parameters in a graph."""
    by_name = {spec.name: i for i, spec in enumerate(given)}
    if all(spec.name in by_name for spec in specs):
        found = [by_name[spec.name] for spec in specs]
    elif len(specs) == len(given):
        found = list(range(len(given)))
    else:
        raise ValueError(
            f"NGOptimizer: graph has {len(given)} parameters; got {len(specs)} parameters whose "
            f"names are not in it"
        )
    for spec, place in zip(specs, found, strict=True):
        _check_shape(spec, given[place])
    return found


def _check_shape(spec: ParameterSpec, given: ParameterSpec) -> None:
    if spec.paired.shape != given.shape:
        raise ValueError(
            f"NGOptimizer: '{spec.name}': graph expects shape {given.shape}; got "
            f"{spec.paired.shape}"
        )


def _with_components(
    graph: NeuralGraph,
    owners: Sequence[Tensor | None],
    groups: Sequence[dict[str, Any]],
) -> Wiring:
    """The graph with the parameters that it lacks as components; owners: whose place
    each is."""
    places = {id(p): i for i, p in enumerate(owners) if p is not None}
    order: list[int] = []
    extra: list[ParameterSpec] = []
    for spec, p in zip(group_specs(groups), group_tensors(groups), strict=True):
        place = places.get(id(p))
        if place is None:
            order.append(len(graph.parameters) + len(extra))
            extra.append(spec)
        else:
            _check_shape(spec, graph.parameters[place])
            order.append(place)
    if extra:
        graph = join_graphs(graph, infer_graph(extra))
    others = set(range(len(graph.parameters))).difference(order)
    return Wiring(graph, [*order, *sorted(others)])


def _fits(graph: NeuralGraph, params: Sequence[Tensor]) -> bool:
    """Whether parameters have the shapes that the graph was made for."""
    shapes = [ParameterSpec.of("", p).paired.shape for p in params]
    return shapes == [spec.shape for spec in graph.parameters]


@contextmanager
def _undisturbed(model: nn.Module):
    """Tracing sees a module as its training does, and no random number is drawn."""
    devices = {p.device for p in model.parameters()}
    with (
        torch.enable_grad(),
        without_autocast(devices),
        torch.random.fork_rng([d.index for d in devices if d.type == "cuda"]),
    ):
        yield


@contextmanager
def without_autocast(devices: Iterable[torch.device]):
    types = filter(_has_autocast, {d.type for d in devices})
    enabled = [t for t in types if torch.is_autocast_enabled(t)]
    for t in enabled:
        torch.set_autocast_enabled(t, False)
    try:
        yield
    finally:
        for t in enabled:
            torch.set_autocast_enabled(t, True)


_has_autocast = cache(torch.amp.is_autocast_available)


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return type(value).__name__
