"""Edges and features of nodes, as rules add them and as blocks of the graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ngopt.graph.groups_and_blocks import View
from ngopt.graph.tracing.values import Elements


@dataclass(frozen=True)
class Edges:
    """Edges whose values are elements of a parameter, or features of nodes.

    sources, targets: labels of nodes that broadcast to one shape (*axes). Without
    sources, elements are features of the targets.
    elements: (*axes, *slots); None for edges of value 1.
    path: the operands and options of the function. Edges of the same path have the same
    activations of their sources.
    """

    elements: Elements | None
    sources: Tensor | None
    targets: Tensor
    kind: str
    path: tuple


@dataclass(frozen=True)
class Block:
    """A regular piece of `Edges`: an `EdgeBlock` or `Bias` of node numbers.

    No node occurs twice in an end, and each end is in one group.
    sources: (groups * n_source,). targets: (groups * n_target,). view: (*shape,
    *slot_shape), where shape is (groups, n_target, n_source); or (n, *slot_shape) for
    features of n targets.
    """

    view: View | None
    sources: Tensor | None
    targets: Tensor
    shape: tuple[int, ...]
    slot_shape: tuple[int, ...]
    kind: str
    path: tuple
