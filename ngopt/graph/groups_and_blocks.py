"""What a neural graph is made of: neuron groups, blocks of edges and biases,
and which are connected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

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
    def of(cls, name: str, parameter: Tensor) -> ParameterSpec:
        """The spec of a tensor, complex numbers still counted as one."""
        return cls(name, tuple(parameter.shape), parameter.is_complex())

    @property
    def paired(self) -> ParameterSpec:
        """The same with complex numbers counted as two."""
        return (
            ParameterSpec(self.name, (*self.shape, 2), True)
            if self.is_complex
            else self
        )

    @property
    def unpaired(self) -> ParameterSpec:
        """The inverse of `paired`."""
        return (
            ParameterSpec(self.name, self.shape[:-1], True) if self.is_complex else self
        )

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class View:
    """Which elements of a parameter lie where: a strided view of its flat elements,
    none of them twice."""

    parameter: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        # the stride of a dimension of length 1 says nothing; with 0,
        # views of the same elements are equal
        strides = tuple(
            s if n > 1 else 0 for s, n in zip(self.strides, self.shape, strict=True)
        )
        object.__setattr__(self, "strides", strides)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def is_whole(self, spec: ParameterSpec) -> bool:
        """Whether the view is the parameter in its own order."""
        return (
            self == View(self.parameter, self.shape, contiguous_strides(self.shape))
            and self.numel == spec.numel
        )

    def read(self, flat: Tensor) -> Tensor:
        """(b, numel, f) -> (b, *shape, f)."""
        return self._of(flat)

    def write(self, flat: Tensor, values: Tensor) -> None:
        """Puts (b, *shape, f) into (b, numel, f), in place."""
        self._of(flat).copy_(values)

    def _of(self, flat: Tensor) -> Tensor:
        tail = flat[:, self.offset :]
        batch, element, feature = flat.stride()
        strides = (batch, *(s * element for s in self.strides), feature)
        return tail.as_strided((len(flat), *self.shape, flat.shape[-1]), strides)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons that one layer produces: the units of a linear layer,
    the channels of a convolution.

    `kind` is "neuron", or says what other thing the nodes are: "token" (rows of a
    table), "product", "head" of an attention, "group" of a GroupNorm, "position",
    "pool" (many neurons reduced to one), "copy" (neurons that a second weight sees in
    another way), "parameter" (shared by many neurons), "constant". `role` is "input",
    "hidden", "output" or, for nodes without any edge, "isolated". `depth` is the length
    of the longest path to the group over that of the longest path in its component: 0
    at inputs, 1 at the deepest outputs. `activation` is the name of the function that
    the network applies to these neurons, the first of several; `symmetry` what all that
    it applies allows, see `topology.allowed`. `is_pinned` says that something which no
    edge shows tells these neurons apart, so that they cannot be exchanged.
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
"""Neurons of a group, in the order in which a block or bias has them; None for all of
them."""


@dataclass(frozen=True)
class EdgeBlock:
    """Edges from neurons of `source` to neurons of `target`, all alike in what they
    mean.

    The edge tensor is (groups, n_target, n_source, slots): every target of a group is
    connected to every source of the same group. A dense layer has one group, a grouped
    convolution several, and a diagonal (the scale of a norm) as many as neurons.
    Counted through all groups, the targets are the neurons `target_index`, the sources
    `source_index`.

    The slots of an edge are the positions of a kernel, of a flattened feature map, the
    gates of a recurrent layer; `slot_shape` is their shape, () for one. `view` says
    which elements these are, with the shape (groups, n_target, n_source, *slot_shape);
    None for the edges of value 1 of a residual connection and the like. `kind` tells
    edges of different meaning apart. In a parameter graph, where each slot is a block,
    `position` is the place of that slot in its kernel.
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


@dataclass(frozen=True)
class Bias:
    """A piece of a parameter that is a feature of nodes: `view` has the shape (n,
    *slot_shape)."""

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
    """What is connected to what: the `groups` of neurons,
    `blocks` of edges and `biases` of a `NeuralGraph`.

    `parameters` lists the parameters in the order in which values are given; the blocks
    in `constants` belong to none. `unplaced` names the parameters for which no rule was
    found, each a component of its own. `members` says for each group which of several
    joined graphs it is of; () where there is one. `inferred` says for each parameter
    whether it is where its name and shape put it, () where none is.
    """

    parameters: tuple[ParameterSpec, ...]
    groups: tuple[NeuronGroup, ...]
    blocks: tuple[EdgeBlock, ...]
    biases: tuple[Bias, ...]
    unplaced: tuple[str, ...] = ()
    members: tuple[int, ...] = ()
    inferred: tuple[bool, ...] = field(default=(), compare=False)

    def blocks_into(self, group: int) -> tuple[EdgeBlock, ...]:
        """The blocks whose target is a group."""
        return self._incoming.get(group, ())

    @cached_property
    def _incoming(self) -> dict[int, tuple[EdgeBlock, ...]]:
        found: dict[int, list[EdgeBlock]] = {}
        for block in self.blocks:
            found.setdefault(block.target, []).append(block)
        return {group: tuple(blocks) for group, blocks in found.items()}

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
        """Of each group, which of several joined graphs it is of."""
        return self.members or (0,) * len(self.groups)
