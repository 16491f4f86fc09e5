"""Where something learned multiplies the base rule: one factor for every row of every matrix.

A row is what leads to one neuron; a parameter without matrices is one row. After each step a row
says how it fared (`row_signals`); before the next, a modulation reads what all rows said and gives
each its factor, so that it sees the whole network though parameters are updated one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ngopt.base.layout import MatrixLayout
from ngopt.graph.core import NeuralGraph

SIGNALS = ("agreement", "direction", "movement", "weights")
TINY = 1e-30


class Modulation(Protocol):
    """Factors of all rows; those of 1 give the base rule, bit for bit."""

    def __call__(
        self,
        signals: Sequence[Tensor],
        graph: NeuralGraph,
        progress: float | Tensor | None,
    ) -> Sequence[Tensor]:
        """signals: (rows, 4) of every parameter; zeros before its first step, (0, 4)
        if it has none.

        progress: share of the horizon that is behind; None if that is unknown.
        Returns (rows,) for every parameter, or () for one factor of all its rows.
        """
        ...


def count_rows(layouts: Sequence[MatrixLayout]) -> int:
    """Rows of all matrices of a parameter."""
    return sum(layout.shape[0] * layout.shape[1] for layout in layouts)


def row_signals(
    layouts: Sequence[MatrixLayout],
    grad: Tensor,
    value: Tensor,
    delta: Tensor,
    param: Tensor,
) -> Tensor:
    """What the rows of one parameter say after a step, (rows, 4).

    "agreement": cosine between direction and gradient; "direction": root mean square of the
    direction, near 1 without noise; "movement": size of the step in that of the weights;
    "weights": logarithm of the root mean square of the weights.
    """
    g, v, d, p = (
        _rows(layouts, x.to(value.dtype)) for x in (grad, value, delta, param)
    )
    agreement = (g * v).sum(-1) / (g.norm(dim=-1) * v.norm(dim=-1) + TINY)
    direction = v.square().mean(-1).sqrt()
    weights = p.square().mean(-1).sqrt()
    movement = d.square().mean(-1).sqrt() / (weights + TINY)
    columns = (agreement, direction, movement, (weights + TINY).log())
    return torch.stack(columns, -1).nan_to_num()


def modulated(
    value: Tensor, factors: Tensor, layouts: Sequence[MatrixLayout]
) -> Tensor:
    """A direction whose rows are multiplied by factors (rows,) or ()."""
    if not factors.dim():
        return value * factors.to(value.dtype)
    counts = [count_rows([layout]) for layout in layouts]
    flat = value.reshape(-1)
    out = torch.empty_like(flat)
    for layout, some in zip(
        layouts, factors.to(value.dtype).split(counts), strict=True
    ):
        rows = some.view(*layout.shape[:2], 1, 1)
        out = layout.write(out, layout.read(flat) * rows)
    return out.view(value.shape)


def _rows(layouts: Sequence[MatrixLayout], values: Tensor) -> Tensor:
    """Values of a parameter's shape -> (rows, longest row), shorter ones with zeros behind."""
    flat = values.reshape(-1)
    pieces = [layout.read(flat).flatten(2).flatten(0, 1) for layout in layouts]
    longest = max(piece.shape[1] for piece in pieces)
    pad = torch.nn.functional.pad
    return torch.cat(
        [pad(piece, (0, longest - piece.shape[1])) for piece in pieces]
    )
