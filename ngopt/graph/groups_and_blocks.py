"""What a neural graph is made of: parameters and views of them, neuron groups, edge
blocks, biases, and the topology that holds these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class ParameterSpec:
    """Name and shape of one parameter; its place in the parameter list is its key.

    In a graph a complex parameter counts as pairs of real numbers, on a last axis of
    its shape.
    """

    name: str
    shape: tuple[int, ...]
    is_complex: bool = False

    @classmethod
    def of(cls, name: str, parameter: Tensor) -> "ParameterSpec":
        """The spec of a tensor, complex numbers still counted as one."""
        return cls(name, tuple(parameter.shape), parameter.is_complex())

    @property
    def paired(self) -> "ParameterSpec":
        """The same with complex numbers counted as two."""
        return replace(self, shape=(*self.shape, 2)) if self.is_complex else self

    @property
    def unpaired(self) -> "ParameterSpec":
        """The inverse of `paired`."""
        return replace(self, shape=self.shape[:-1]) if self.is_complex else self

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class View:
    """A strided view of the flat elements of a parameter, each at most once."""

    parameter: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        # strides of dimensions of length 1 are set to 0: equal elements, equal views
        lengths_and_strides = zip(self.shape, self.strides, strict=True)
        strides = tuple(stride if n > 1 else 0 for n, stride in lengths_and_strides)
        object.__setattr__(self, "strides", strides)

    @classmethod
    def whole(cls, parameter: int, shape: tuple[int, ...]) -> "View":
        """All elements of a parameter in their own order."""
        return cls(parameter, shape, contiguous_strides(shape))

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def last(self) -> int:
        """The position of its last element."""
        ends = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((n - 1) * stride for n, stride in ends)

    def is_whole(self, spec: ParameterSpec) -> bool:
        """Whether the view is the parameter in its own order."""
        is_contiguous = self == View.whole(self.parameter, self.shape)
        return is_contiguous and self.numel == spec.numel

    def read(self, flat: Tensor) -> Tensor:
        """(b, numel, f) -> `(b, *shape, f)`, which shares memory."""
        tail = flat[:, self.offset :]
        batch, element, feature = flat.stride()
        strides = [stride * element for stride in self.strides]
        shape = (len(flat), *self.shape, flat.shape[-1])
        return tail.as_strided(shape, (batch, *strides, feature))

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Puts `(b, *shape, f)` into (b, numel, f), in place."""
        self.read(flat).copy_(values)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def even_runs(numbers: Tensor) -> list[Tensor]:
    """Runs of numbers with the same step between neighbours."""
    runs = []
    while len(numbers):
        steps = numbers.diff()
        # a run ends at the first i with another steps[i]
        changes = (steps != steps[:1]).nonzero()
        length = int(changes[0]) + 1 if len(changes) else len(numbers)
        runs.append(numbers[:length])
        numbers = numbers[length:]
    return runs


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one layer: the units of a linear layer, the channels of a
    convolution.

    Attributes:
        kind: One of `ngopt.graph.kinds.NODE_KINDS`.
        role: "input", "hidden", "output" or, for nodes without edges, "isolated".
        depth: Length of the longest path to the group, divided by that of the longest
            path in its component: 0 at inputs, 1 at the deepest outputs.
        activation: Name of the first function that the network applies to these
            neurons.
        symmetry: See `ngopt.graph.activation_symmetry.symmetry_of`.
        is_pinned: Whether these neurons differ by something that no edge shows, so that
            they cannot be exchanged.
    """

    name: str
    size: int
    kind: str = "neuron"
    role: str = "isolated"
    depth: float = 0.0
    activation: str | None = None
    symmetry: str | None = None
    is_pinned: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether its neurons cannot be exchanged: inputs, outputs, pinned and isolated
        ones."""
        return self.role != "hidden" or self.is_pinned


Index = tuple[int, ...] | None
"""Neurons of a group, in the order of a block or bias; None for all of them."""


class NeuronSet(NamedTuple):
    """Some neurons of a group, in order; all of them where `index` is None."""

    group: int
    index: Index = None


@dataclass(frozen=True)
class EdgeBlock:
    """Edges of one kind from neurons of the group `source` to neurons of `target`.

    Attributes:
        shape: (groups, n_target, n_source). Every target of a group has an edge from
            every source of the same group: one group for a dense layer, several for a
            grouped convolution, one per neuron for a diagonal (the scale of a norm).
        slot_shape: Shape of the slots of an edge, which are the positions of a kernel
            or of a flattened map, or the gates of a recurrent layer; () for one slot.
        view: The elements, `(groups, n_target, n_source, *slot_shape)`; None for edges
            of value 1, such as those of a residual connection.
        kind: One of `ngopt.graph.kinds.EDGE_KINDS`.
        source_index, target_index: The neurons, counted through all groups.
        position: In a parameter graph, where each slot is a block: the slot's place in
            its kernel.
    """

    view: View | None
    source: int
    target: int
    shape: tuple[int, int, int]
    slot_shape: tuple[int, ...] = ()
    kind: str = "weight"
    source_index: Index = None
    target_index: Index = None
    position: tuple[int, ...] = ()

    @property
    def slots(self) -> int:
        return prod(self.slot_shape)

    @property
    def elements(self) -> View:
        """The view of edges that have elements."""
        assert self.view is not None
        return self.view


@dataclass(frozen=True)
class Bias:
    """Elements of a parameter that are features of nodes.

    Attributes:
        view: of the shape (n, *slot_shape).
        kind: see `ngopt.graph.kinds`.
        index: the n neurons of `group`; None for all of them, in order.
    """

    view: View
    group: int
    slot_shape: tuple[int, ...] = ()
    kind: str = "bias"
    index: Index = None


def is_diagonal(block: EdgeBlock) -> bool:
    """Whether every target has one source of its own, as with the scale of a norm."""
    return block.shape[0] > 1 and block.shape[1:] == (1, 1)


@dataclass(frozen=True)
class Topology:
    """Groups, blocks and biases of a `NeuralGraph`.

    Attributes:
        parameters: In the order in which values are given.
        unplaced: Names of the parameters without a place, each a component of its own.
        graph_ids: For each group, the number of its graph among joined graphs; () for
            one graph.
        inferred: For each parameter, whether its place follows from its name and shape
            alone; () where none does.
        reasons: Why a trace found no place, by the names of parameters.
    """

    parameters: tuple[ParameterSpec, ...]
    groups: tuple[NeuronGroup, ...]
    blocks: tuple[EdgeBlock, ...]
    biases: tuple[Bias, ...]
    unplaced: tuple[str, ...] = ()
    graph_ids: tuple[int, ...] = ()
    inferred: tuple[bool, ...] = field(default=(), compare=False)
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False)

    def blocks_into(self, group: int) -> tuple[EdgeBlock, ...]:
        """The blocks whose target is a group."""
        blocks, _ = self._at_groups
        return tuple(blocks[group])

    def biases_of(self, group: int) -> tuple[Bias, ...]:
        """The biases that are features of a group."""
        _, biases = self._at_groups
        return tuple(biases[group])

    @cached_property
    def _at_groups(self) -> tuple[list[list[EdgeBlock]], list[list[Bias]]]:
        """The blocks into every group, and the biases of every group."""
        blocks = [[] for _ in self.groups]
        biases = [[] for _ in self.groups]
        for block in self.blocks:
            blocks[block.target].append(block)
        for bias in self.biases:
            biases[bias.group].append(bias)
        return blocks, biases

    @cached_property
    def views(self) -> list[list[View]]:
        """For every parameter the views of its biases, then those of its blocks."""
        views: list[list[View]] = [[] for _ in self.parameters]
        for bias in self.biases:
            views[bias.view.parameter].append(bias.view)
        for block in self.weights:
            views[block.elements.parameter].append(block.elements)
        return views

    @property
    def numel(self) -> int:
        """Number of parameter elements in the graph."""
        return sum(spec.numel for spec in self.parameters)

    @cached_property
    def weights(self) -> tuple[EdgeBlock, ...]:
        """The blocks whose edges are parameters."""
        return tuple(block for block in self.blocks if block.view is not None)

    @cached_property
    def constants(self) -> tuple[EdgeBlock, ...]:
        """The blocks whose edges have the value 1."""
        return tuple(block for block in self.blocks if block.view is None)

    @property
    def membership(self) -> tuple[int, ...]:
        """For each group, the number of its graph among joined graphs."""
        return self.graph_ids or (0,) * len(self.groups)
