"""What rules record: blocks of edges and biases whose ends are still node numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ngopt.graph.core import View


@dataclass(frozen=True)
class RawBlock:
    """A block whose ends are still node numbers: sources (groups * n_source,), targets (groups * n_target,).

    use: which function is applied to what; weights with the same one see their sources in the same way.
    """

    view: View | None
    sources: Tensor
    targets: Tensor
    shape: tuple[int, int, int]
    slot_shape: tuple[int, ...]
    kind: str
    use: tuple


@dataclass(frozen=True)
class RawBias:
    view: View
    nodes: Tensor
    slot_shape: tuple[int, ...]
    kind: str
