"""Celo2, a learned optimizer, with its published weights (arXiv 2602.19142)."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import AdamW, Optimizer

from ngopt.newton_schulz import orthogonalized
from ngopt.race.muon import OptimizerOfParts

WEIGHTS = Path(__file__).parents[2] / "results/celo2/celo2.safetensors"
"""347 numbers, converted by Belilovsky-Lab/pylo, BSD-3-Clause: see LICENSE there."""
DECAYS = (0.9, 0.99, 0.999)
SQUARE_DECAY = 0.95
LARGEST_GRADIENT = 1000.0


class Celo2(Optimizer):
    """Celo2 on parameters of two dimensions or more.

    An MLP of 30 features of each element gives a direction, (*shape,). Features and
    direction are divided by their RMS over the last two dimensions; in between the
    direction becomes nearly orthogonal. It has no schedule and no weight decay.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, orthogonalize: bool = True):
        """orthogonalize: without it, it is the variant that its authors call
        Celo2-base."""
        super().__init__(params, {"lr": lr})
        self._orthogonalizes = orthogonalize
        self._mlp = SplitMlp(WEIGHTS)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self._direction(p), alpha=group["lr"])

    def _direction(self, p: Tensor) -> Tensor:
        if p not in self.state:
            self.state[p] = initial_state(p)
        assert p.grad is not None
        gradient = p.grad.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)
        features = features_of(p, gradient, self.state[p])
        direction = self._mlp([_unit(x, (-3, -2)) for x in features])[..., 0]
        if self._orthogonalizes:
            direction = orthogonalized(direction)
        return _unit(direction, (-2, -1))


class Celo2WithAdam(OptimizerOfParts):
    """Celo2 on parameters of two dimensions or more, AdamW on the others."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        with_adam: Iterable[Tensor] = (),
        orthogonalize: bool = True,
    ):
        """with_adam: other parameters for AdamW, such as embeddings. orthogonalize: of
        `Celo2`."""
        super().__init__(params, lr)
        matrices, vectors = self.divided(with_adam)
        if matrices:
            self.parts.append(Celo2(matrices, lr, orthogonalize))
        if vectors:
            self.parts.append(AdamW(vectors, lr, (0.9, 0.95), weight_decay=0))


class SplitMlp:
    """An MLP with ReLU whose first layer has a weight for each group of features."""

    def __init__(self, path: Path):
        weights = load_file(path)
        groups = sum(name.startswith("w0.") for name in weights)
        self.first = [weights[f"w0.{i}"] for i in range(groups)]
        self.bias = weights["b0"]
        self.dense = [
            (weights[f"dense_w.{i}"], weights[f"dense_b.{i}"]) for i in (0, 1)
        ]

    def __call__(self, features: list[Tensor]) -> Tensor:
        """features: (*shape, n) each. Returns (*shape, 3)."""
        pairs = zip(features, self.first, strict=True)
        x = torch.stack([feature @ weight for feature, weight in pairs]).sum(0)
        x = x + self.bias
        for weight, bias in self.dense:
            x = x.relu() @ weight + bias
        return x


def initial_state(p: Tensor) -> dict[str, Tensor]:
    """momentum: (*shape, 3). square: (*shape, 1). rows and columns: of the mean squares
    along one of the two longest dimensions, (..., 3)."""
    shape = (*p.shape, len(DECAYS))
    row_dim, column_dim = longest_dims(p)
    return {
        "momentum": p.new_zeros(shape),
        "square": p.new_zeros((*p.shape, 1)),
        "rows": p.new_zeros(shape).mean(column_dim),
        "columns": p.new_zeros(shape).mean(row_dim),
    }


def longest_dims(p: Tensor) -> tuple[int, int]:
    """The two longest dimensions, the longest last."""
    *_, second, first = np.argsort(p.shape)
    return int(second), int(first)


def features_of(p: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """The groups of features, (*shape, n) each, after `state` was updated in place."""
    g = gradient[..., None]
    decays = g.new_tensor(DECAYS)
    row_dim, column_dim = longest_dims(p)
    state["momentum"].mul_(decays).add_((1 - decays) * g)
    state["square"].mul_(SQUARE_DECAY).add_((1 - SQUARE_DECAY) * g.square())
    squares = g.square() + 1e-30
    for key, dim in (("rows", column_dim), ("columns", row_dim)):
        state[key].mul_(decays).add_((1 - decays) * squares.mean(dim))
    momentum, square = state["momentum"], state["square"]
    rows, columns = state["rows"], state["columns"]
    mean = rows.mean(row_dim - (row_dim > column_dim), keepdim=True)
    factors = _inverse_root(rows / (mean + 1e-9)).unsqueeze(column_dim)
    factors = factors * _inverse_root(columns).unsqueeze(row_dim)
    inverse = (square + 1e-8).rsqrt()
    of_rows, of_columns = (
        x.unsqueeze(dim).expand_as(momentum)
        for x, dim in ((rows, column_dim), (columns, row_dim))
    )
    return [
        g,
        g.clamp(-0.1, 0.1),
        p[..., None],
        momentum,
        square,
        momentum * inverse,
        inverse,
        g * factors,
        g * inverse,
        of_rows,
        of_columns,
        (of_rows + 1e-8).rsqrt(),
        (of_columns + 1e-8).rsqrt(),
        momentum * factors,
    ]


def _inverse_root(x: Tensor) -> Tensor:
    return x.clamp(min=1e-9).rsqrt()


def _unit(x: Tensor, dims: tuple[int, int]) -> Tensor:
    """Divided by the RMS over some dimensions."""
    return x * (x.square().mean(dims, keepdim=True) + 1e-9).rsqrt()
