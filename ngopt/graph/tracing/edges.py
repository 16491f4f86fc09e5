"""Edges and features of nodes, as rules say them and as the graph has them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ngopt.graph.groups_and_blocks import View
from ngopt.graph.tracing.values import Elements


@dataclass(frozen=True)
class Edges:
    """Edges whose values are elements of a parameter, or features of nodes: what a rule
    says.

    sources, targets: labels of nodes that broadcast to one shape (*axes). Without
    sources, elements are features of the targets.
    elements: (*axes, *slots): what dimensions they have beyond those of the labels are
    slots. None for edges of value 1.
    path: how the sources come to the weight; those with the same path see them alike.
    """

    elements: Elements | None
    sources: Tensor | None
    targets: Tensor
    kind: str
    path: tuple


@dataclass(frozen=True)
class Block:
    """A regular piece of `Edges`: an `EdgeBlock` or `Bias` whose ends are still node
    numbers.

    No node is at an end twice, and each end lies in one group.
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
