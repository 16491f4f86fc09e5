"""What rules use: the nodes and edges so far, and the value of every tensor."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_map_only

from ngopt.graph.groups_and_blocks import ParameterSpec
from ngopt.graph.tracing.blocks import Edges
from ngopt.graph.tracing.nodes import KnownRows, Mark, Nodes
from ngopt.graph.tracing.values import (
    NO_NEURON,
    SAME_CONSTANT,
    Elements,
    Unknown,
    Value,
    along,
    distinct_rows,
    nodes_among,
    not_none,
    same_along,
    with_zero_strides,
    without_repeats,
)


class AppliedFunction(NamedTuple):
    """A function that was applied to neurons.

    labels: of the neurons. name: that of torch; None if another entry has it.
    function: distinguishes it from other functions, with its arguments; None if the
    graph does so, or if all neurons of a layer have the same function.
    """

    labels: Tensor
    name: str | None
    function: str | None


class Tracer:
    """The state of a trace; rules call its methods to add to the graph.

    values: of the results of functions, by the function's node.
    input_dependent: functions whose result depends on the network's input.
    applied_functions: in the order of the program.
    pinned_parameters: parameters whose neurons are all pinned.
    row_normalised: parameters that are normalised in rows.
    inputs: of the network, by the groups of their nodes; those without a batch axis are
    `unbatched`.
    known_rows: of rules that remember rows of nodes.
    rules: of functions. call: the function or module whose rule is applied.
    """

    def __init__(self, model: nn.Module, rules: Mapping[Any, Callable[..., Any]]):
        self.rules = rules
        self.call: Node | None = None
        self.parameters: list[ParameterSpec] = []
        self._position: dict[int, int] = {}
        for name, parameter in model.named_parameters():
            # named_parameters returns a tied parameter once
            self._position[id(parameter)] = len(self.parameters)
            self.parameters.append(ParameterSpec.of(name, parameter))
        self._constants: dict[tuple, Tensor] = {}
        self.nodes = Nodes()
        self.all_edges: list[Edges] = []
        self.values: dict[Node, Value] = {}
        self.input_dependent: set[Node] = set()
        self.applied_functions: list[AppliedFunction] = []
        self.pinned_parameters: set[int] = set()
        self.row_normalised: set[int] = set()
        self.inputs: dict[int, Node] = {}
        self.unbatched: set[str] = set()
        self._lost_at: dict[int, str] = {}
        self.known_rows = KnownRows(self.nodes)

    def shape_of(self, call: Node) -> torch.Size:
        """The shape of a function's result, or of its first one."""
        value = call.meta["val"]
        return (value if isinstance(value, Tensor) else value[0]).shape

    def unknown(self, call: Node) -> Value:
        """The result of a function that is not followed."""
        value = call.meta.get("val")
        return tree_map_only(Tensor, lambda tensor: Unknown(tensor.shape), value)

    def argument(self, call: Node, name: str) -> Any:
        """An argument of a function of torch, by its name in the schema. Its default if
        it is not given, None if the function has no such argument."""
        function: Any = call.target
        signature = function._schema.arguments
        defaults = {argument.name: argument.default_value for argument in signature}
        # torch.fx leaves out arguments that have their defaults
        given = dict(zip(defaults, call.args, strict=False)) | call.kwargs
        argument = given.get(name, defaults.get(name))
        return self.values[argument] if isinstance(argument, Node) else argument

    def is_parameter(self, tensor: Tensor) -> bool:
        return id(tensor) in self._position

    def elements(self, parameter: Tensor) -> Elements:
        """The elements of a parameter of the model."""
        position = self._position[id(parameter)]
        return Elements.whole(position, self.parameters[position].shape)

    def linear(
        self, weight: Elements | Tensor, x: Value, bias: Elements | Tensor | None = None
    ) -> Value:
        """y = x W^T + b, for rules of modules; adds its nodes and edges.

        Args:
            weight: (n_out, n_in), a parameter or its elements.
            x: (*, n_in).
            bias: (n_out,), a parameter or its elements.
        """
        if isinstance(weight, Tensor):
            weight = self.elements(weight)
        if isinstance(bias, Tensor):
            bias = self.elements(bias)
        rule = self.rules[torch.ops.aten.linear]
        shape = torch.Size((*x.shape[:-1], weight.shape[0]))
        return rule(self, self.call, x, weight, bias, shape)

    def name_of(self, elements: Elements) -> str:
        """The name of the layer that a parameter belongs to."""
        return self.parameters[elements.parameter].name.removesuffix(".weight")

    def new_layer(self, weight: Elements, size: int) -> Tensor:
        """New neurons (size,), the outputs of a weight."""
        return self.nodes.new(self.name_of(weight), size)

    def new_input(self, call: Node, shape: torch.Size) -> Tensor:
        """Nodes of a shape for an input of the network."""
        size = max(shape.numel(), 1)
        self.inputs[len(self.nodes.names)] = call
        # made of no nodes: a linear layer unifies the places of a sequence
        made_of = torch.empty(0, size)
        nodes = self.nodes.new(call.name, size, made_of=made_of, mark=Mark.INPUT)
        return nodes.reshape(shape)

    def _inputs_among(self, labels: Tensor) -> set[int]:
        """The groups of the nodes of inputs."""
        groups = self.nodes.group_of(self.nodes.find(nodes_among(labels)))
        return self.inputs.keys() & set(groups.tolist())

    def read_features(self, labels: Tensor, dim: int) -> None:
        """Finds inputs without a batch axis: a layer reads their first axis as the
        features, or the channels, along a dimension."""
        rank = labels.dim() - dim % labels.dim()
        size = labels.shape[dim]
        # rows of a batch have the same nodes
        if size == 1 or not same_along(labels, dim):
            return
        for group in self._inputs_among(labels):
            shape = self.shape_of(self.inputs[group])
            if len(shape) == rank and shape[0] == size:
                self.unbatched.add(self.inputs[group].name)

    def lose(self, labels: Tensor, call: Node) -> None:
        """Notes inputs that are unknown behind a function."""
        for group in self._inputs_among(labels):
            self._lost_at.setdefault(group, call.name)

    def lost_inputs(self) -> list[str]:
        """What was lost of inputs without an edge."""
        read = not_none(*(edges.sources for edges in self.all_edges))
        lost = []
        for group, function in self._lost_at.items():
            if not any(group in self._inputs_among(sources) for sources in read):
                call = self.inputs[group]
                shape = tuple(self.shape_of(call))
                lost.append(f"'{call.name}' of shape {shape} behind '{function}'")
        return lost

    def edges(
        self,
        elements: Elements | None,
        sources: Tensor | None,
        targets: Tensor,
        kind: str = "weight",
        call: Node | None = None,
    ) -> None:
        """Adds edges, or features of nodes.

        sources, targets: labels of nodes that broadcast to one shape (*axes), with an
            edge at each place. Without sources, elements are features of the targets,
            such as biases. With elements, sources that are no neuron become constant
            nodes.
        elements: (*axes, *slots), the values of the edges; None for edges of value 1.
        kind: one of `EDGE_KINDS` or `BIAS_KINDS`.
        call: the function of the edges. It distinguishes weights to which the same
            sources come through other functions.

        Raises ValueError if the elements have another shape than the labels.
        """
        path = () if call is None else self._path(call)
        if elements is None:
            self.all_edges.append(Edges(None, sources, targets, kind, path))
            return
        self._check(elements, sources, targets)
        if not elements.shape.numel():  # of a layer without neurons
            return
        if sources is not None:
            # before the factors, which have the same constant nodes
            sources = self.source_nodes(sources, self.name_of(elements))
        self.all_edges.append(Edges(elements, sources, targets, kind, path))
        for factor in elements.factors:
            if not self._add_factor(factor, sources, targets):
                self.pinned_parameters.add(elements.parameter)

    def _check(
        self, elements: Elements, sources: Tensor | None, targets: Tensor
    ) -> None:
        shapes = [tuple(end.shape) for end in not_none(sources, targets)]
        try:
            shape = torch.broadcast_shapes(*shapes)
            fits = elements.shape[: len(shape)] == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"edges of '{self.parameters[elements.parameter].name}': expected "
                f"labels that broadcast to the first dimensions of "
                f"{tuple(elements.shape)}; got {' and '.join(map(str, shapes))}"
            )

    def _add_factor(
        self, factor: Elements, sources: Tensor | None, targets: Tensor
    ) -> bool:
        """Adds a parameter that is a factor or summand of a weight, in its shape.

        A matrix is edges of its own. A factor that is the same for all sources, such as
        the norms of weight normalisation, is a feature of the targets; one that is the
        same for all targets is a feature of the sources, and one that is the same for
        all edges of a node before the targets. Returns False, and adds nothing, for any
        other factor.
        """
        ends = not_none(targets, sources)
        axes = max(end.dim() for end in ends)
        # along other axes the factor is the same everywhere (stride 0)
        strides = factor.layout.stride()
        changing = [d for d, n in enumerate(factor.shape) if strides[d] != 0 and n > 1]
        # edges without slots
        is_matrix = len(changing) == axes == len(factor.shape) == 2
        if is_matrix and sources is not None:
            self.edges(factor, sources, targets, "scale")
            return True
        # counted from the last axis of labels, as an end may lack the first axes
        node_axes = [d - axes for d in changing if d < axes]
        if not node_axes:
            numbers = factor.apply(lambda x: along(x, *changing)[None])
            shared = self.nodes.new(self.name_of(factor), 1, "parameter")
            self.edges(numbers, None, shared, "scale")
            self.edges(None, shared, targets, "spread")
            return True
        for end in ends:
            long_axes = [d - end.dim() for d, n in enumerate(end.shape) if n > 1]
            if node_axes == long_axes:
                # rows may be in several groups
                feature = factor.apply(lambda x: along(x, *changing))
                self.edges(feature, None, end.squeeze(), "scale")
                return True
        return False

    def _path(self, call: Node) -> tuple:
        """The operands and options of a function."""
        operands = [
            source.name
            for source in call.all_input_nodes
            # weights and constants are no sources
            if not isinstance(self.values.get(source), (Elements, Tensor))
        ]
        # such as the dilation of a convolution
        options = [a for a in call.args if not isinstance(a, Node)]
        return (*operands, str(call.target), str(options))

    def pin(self, *labels: Tensor) -> None:
        """Marks neurons that cannot be exchanged, for a reason outside of the graph."""
        for x in labels:
            self.nodes.mark(x, Mark.PINNED)

    def is_zero(self, call: Node, value: Value) -> bool:
        """Whether an argument of a function is a constant 0, for any network input."""
        if not isinstance(value, Tensor) or value.any():
            return False
        # integer inputs are traced as zeros: functions of them may be 0 by chance
        return self.input_dependent.isdisjoint(call.all_input_nodes)

    def constant_nodes(self, rows: Tensor) -> Tensor:
        """Nodes (n,) for constants (n, k): the same ones for the same constants."""
        known = self._constants
        key = (tuple(rows.shape), rows.double().cpu().numpy().tobytes())
        if key not in known:
            name = f"constant {len(known)}"
            # marked as inputs, which are never exchanged
            known[key] = self.nodes.new(name, len(rows), "constant", mark=Mark.INPUT)
        return known[key]

    def source_nodes(self, labels: Tensor, name: str) -> Tensor:
        """Labels with new constant nodes for all entries that are no neuron."""
        if (labels > 0).all():
            return labels
        # a copy: labels belong to the caller and may have stride 0
        labels = labels.clone()
        name = f"{name}.constant"
        # learned nodes are hidden and can be exchanged; without a mark they are inputs
        for label, mark in ((NO_NEURON, Mark.NONE), (SAME_CONSTANT, Mark.LEARNED)):
            missing = labels == label
            count = int(missing.sum())
            if count:
                labels[missing] = self.nodes.new(name, count, "constant", mark=mark)
        return labels

    def unify_places(self, labels: Tensor, dims: int | Sequence[int]) -> Tensor | None:
        """The nodes (n,) along some dimensions, if the same along the others.

        If they differ between places, as the entries of an input do, corresponding
        nodes are unified. None if that would unify two nodes of one place or two
        outputs of a weight, or if there is no neuron.
        """
        dims = [dims] if isinstance(dims, int) else dims
        dims = [d % labels.dim() for d in dims]
        (labels,) = without_repeats([labels], keep=dims)
        n = prod(labels.shape[d] for d in dims)
        labels = labels.movedim(dims, list(range(-len(dims), 0)))
        rows = self.nodes.find(distinct_rows(labels.reshape(-1, n)))
        if min(rows.shape) > 1 and same_along(rows, 1):
            return None  # each place is one neuron throughout
        is_neuron = rows > 0
        # padding leaves gaps in some rows: the row with fewest gaps is the model
        best = rows[is_neuron.sum(1).argmax()]
        # each row has gaps where another has neurons
        has_gap = is_neuron & (best <= 0)
        if has_gap.any() or not (best > 0).any():
            return None
        rows = torch.where(is_neuron, rows, best)
        is_same = not (rows != best).any()
        if is_same or self.nodes.try_unify(torch.cat([best[None], rows])):
            return self.nodes.find(best)
        return None

    def unify_rows(self, labels: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The different rows (r, n) along a dimension, and which is where, (*others).

        One row if `unify_places` can unify them. The numbers may have length 1 along
        dimensions of repeats.
        """
        row = self.unify_places(labels, dim)
        if row is not None:
            return row[None], torch.zeros([1] * (labels.dim() - 1), dtype=torch.long)
        labels = with_zero_strides(self.nodes.find(labels))
        axis = dim % labels.dim()
        # a batch repeats with stride 0 here, and is sorted only once
        (labels,) = without_repeats([labels], keep=[axis])
        labels = labels.movedim(axis, -1)
        rows = labels.reshape(-1, labels.shape[-1])
        rows, which = rows.unique(dim=0, return_inverse=True)
        return rows, which.reshape(labels.shape[:-1])
