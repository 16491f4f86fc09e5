"""Where something learned may multiply the base rule: one factor for every row of every matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ngopt.base.layout import MatrixLayout
from ngopt.graph.core import NeuralGraph

SIGNALS = ("agreement", "size of the direction", "movement", "size of the weights")
"""What a row says of itself after a step; see `row_signals`."""


class Modulation(Protocol):
    """Reads what rows (neurons) said after the step before, and multiplies their directions.

    signals: per parameter (rows, len(SIGNALS)), zeros before the first step; progress: share of the
    horizon behind, or None. Returns per parameter (rows,), or () for one factor of all rows. A
    modulation of 1 is the base rule, bit for bit.
    """

    def __call__(
        self, signals: Sequence[Tensor], graph: NeuralGraph, progress: float | None
    ) -> Sequence[Tensor]: ...
