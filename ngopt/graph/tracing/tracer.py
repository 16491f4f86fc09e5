"""What rules use: the nodes and edges found so far, and what is known of every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_map

from ngopt.graph.core import ParameterSpec, View
from ngopt.graph.tracing.elements import Elements
from ngopt.graph.tracing.nodes import Nodes
from ngopt.graph.tracing.raw import RawBias, RawBlock
from ngopt.graph.tracing.values import (
    NO_NEURON,
    SAME_CONSTANT,
    Unknown,
    Value,
    distinct_rows,
    folded,
    nodes_among,
    without_repeats,
)


class Tracer:
    """What is known of a network so far; rules call its methods to add to the graph."""

    def __init__(self, model: nn.Module):
        named = list(model.named_parameters())
        self.parameters = [ParameterSpec.of(name, p) for name, p in named]
        self._position = {id(p): i for i, (_, p) in enumerate(named)}
        self.nodes = Nodes()
        self.blocks: list[RawBlock] = []
        self.biases: list[RawBias] = []
        self.activations: list[tuple[Tensor, str]] = []
        self.functions: list[tuple[Tensor, str]] = []  # which were applied to which neurons, one after the other
        self.outputs: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.learned: list[Tensor] = []  # neurons to which nothing leads, but which are no inputs
        self.pristine: set[Node] = set()  # whose neurons nothing but weights has been applied to
        self.pinned: list[Tensor] = []  # neurons that something tells apart of which no more is known
        self.data: set[Node] = set()  # functions of the network's input
        self.moved: set[Node] = set()  # functions that take other positions of neurons
        self.normalised: set[Node] = set()  # norms without a scale: a parameter that follows is one
        self.rowwise: set[int] = set()  # parameters that are normalised in rows
        self.fixed: set[int] = set()  # parameters whose neurons are all pinned
        self.cells: dict[tuple, list[Any]] = {}  # recurrent ones that take steps, by the views of their weights
        self.mixed: dict[Node, Tensor] = {}  # positions that the results of functions have, where a weight made them
        self.values: dict[Node, Value] = {}
        self._constants: dict[tuple, Tensor] = {}
        self.use: tuple = ()  # the function at which the walk is, and what it is applied to

    def shape_of(self, node: Node) -> torch.Size:
        return node.meta["val"].shape

    def unknown(self, node: Node) -> Value:
        """The result of a function that nothing is known of."""
        return tree_map(lambda v: Unknown(v.shape) if isinstance(v, Tensor) else v, node.meta.get("val"))

    def is_parameter(self, tensor: Tensor) -> bool:
        return id(tensor) in self._position

    def elements(self, parameter: Tensor) -> Elements:
        """A parameter of the model, as rules see it."""
        position = self._position[id(parameter)]
        return Elements.whole(position, self.parameters[position].shape)

    def pin(self, *labels: Tensor) -> None:
        """Marks neurons that cannot be exchanged with others, in a way that the graph does not show."""
        self.pinned += [self.nodes.find(nodes_among(x)) for x in labels]

    def is_zero(self, node: Node, value: Value) -> bool:
        """Whether an argument of a function is a constant 0, whatever the network's input is."""
        return isinstance(value, Tensor) and not value.any() and self.data.isdisjoint(node.all_input_nodes)

    def constant_nodes(self, rows: Tensor) -> Tensor:
        """Nodes (n,) that stand for different constants (n, k), the same ones for the same constants."""
        key = (tuple(rows.shape), rows.double().numpy().tobytes())
        if key not in self._constants:
            size = len(rows)
            self._constants[key] = self.nodes.new(f"constant {len(self._constants)}", size, "constant")
            self.inputs.append(self._constants[key])
        return self._constants[key]

    def owner(self, parameter: int) -> str:
        """The name of the layer that a parameter belongs to."""
        return self.parameters[parameter].name.removesuffix(".weight")

    def vector(self, labels: Tensor, dims: int | Sequence[int]) -> Tensor | None:
        """The nodes along some dimensions, (n,), when they are the same at all places of the others.

        Where they differ from place to place, as with the raw entries of an input, corresponding
        nodes become one; None if that would join nodes which one place or a weight keeps apart, or
        if nothing along these dimensions is a neuron.
        """
        dims = [d % labels.dim() for d in ([dims] if isinstance(dims, int) else dims)]
        (labels,) = without_repeats([labels], keep=dims)
        n = 1
        for d in dims:
            n *= labels.shape[d]
        rows = self.nodes.find(distinct_rows(labels.movedim(dims, list(range(-len(dims), 0))).reshape(-1, n)))
        if n > 1 and len(rows) > 1 and (rows == rows[:, :1]).all():
            return None  # each place has one neuron, at many positions
        best = rows[(rows >= 0).sum(1).argmax()]
        if not (best >= 0).any():
            return None
        rows = torch.where(rows >= 0, rows, best)
        if (rows != best).any() and not self.nodes.can_unify(torch.cat([best[None], rows])):
            return None
        return self.nodes.find(best)

    def rows(self, labels: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The different rows of nodes along a dimension, (r, n), and which of them is where, (*other dimensions).

        One where nodes are the same at all places, see `vector`. Dimensions along which rows only
        repeat may have length 1.
        """
        one = self.vector(labels, dim)
        if one is not None:
            return one[None], torch.zeros([1] * (labels.dim() - 1), dtype=torch.long)
        (labels,) = without_repeats([folded(self.nodes.find(labels))], keep=[dim % labels.dim()])
        labels = labels.movedim(dim, -1)
        rows, which = labels.reshape(-1, labels.shape[-1]).unique(dim=0, return_inverse=True)
        return rows, which.reshape(labels.shape[:-1])

    def add_block(
        self,
        view: View | None,
        sources: Tensor,
        targets: Tensor,
        shape: tuple[int, int, int],
        slot_shape: tuple[int, ...] = (),
        kind: str = "weight",
    ) -> None:
        self.blocks.append(RawBlock(view, sources, targets, shape, slot_shape, kind, self.use))

    def add_bias(self, elements: Elements | None, nodes: Tensor, kind: str = "bias") -> None:
        """A piece (n, *slots) of a parameter as a feature of n nodes."""
        view = None if elements is None else elements.view()
        if view is not None:
            self.biases.append(RawBias(view, nodes, view.shape[1:], kind))

    def source_nodes(self, labels: Tensor, name: str) -> Tensor:
        """Labels without gaps: entries that are no neuron become new, constant nodes."""
        if (labels >= 0).all():
            return labels
        labels = labels.clone()
        for label in (NO_NEURON, SAME_CONSTANT):
            missing = labels == label
            if missing.any():
                labels[missing] = new = self.nodes.new(f"{name}.constant", int(missing.sum()), "constant")
                self.learned += [new] if label == SAME_CONSTANT else []
        return labels
