"""Celo2, a learned optimizer, with its published weights (arXiv 2602.19142)."""

from collections.abc import Iterable, Sequence
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
        self._mlp = Mlp(WEIGHTS)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self._direction(p), alpha=group["lr"])

    def _direction(self, p: Tensor) -> Tensor:
        weight = p.float()  # as the MLP is
        if p not in self.state:
            self.state[p] = initial_state(weight)
        assert p.grad is not None
        gradient = p.grad.float().clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)
        features = features_of(weight, gradient, self.state[p])
        direction = self._mlp(features, p.shape)
        if self._orthogonalizes:
            direction = orthogonalized(direction)
        return direction.mul_(inverse_rms(direction))


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


class Mlp:
    """An MLP with ReLU, the same for every element."""

    def __init__(self, path: Path):
        weights = load_file(path)
        groups = sum(name.startswith("w0.") for name in weights)
        # one for each group of features, (features of the group, hidden)
        self._first = [weights[f"w0.{i}"] for i in range(groups)]
        self._first_bias = weights["b0"]
        # of the three outputs, the first is the direction
        last, bias = weights["dense_w.1"][:, :1], weights["dense_b.1"][:1]
        self._layers = [(weights["dense_w.0"], weights["dense_b.0"]), (last, bias)]

    def __call__(self, features: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """features: groups of (features, *shape), or with 1 along a dimension in which
        they are constant. Returns (*shape,)."""
        x = self._first_layer(features, shape).flatten(1)
        for weight, bias in self._layers:
            x = torch.addmm(bias[:, None], weight.T, x.relu_())
        return x.view(shape)

    def _first_layer(self, features: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """Returns (hidden, *shape). Constant features are multiplied once and added by
        broadcasting, in place of being written for each element."""
        pairs = list(zip(self._first, features, strict=True))
        whole = [(weight, x) for weight, x in pairs if x.shape[1:] == shape]
        weights, groups = zip(*whole, strict=True)
        weight, x = torch.cat(weights), torch.cat(groups)
        x = x.mul_(inverse_rms(x)).flatten(1)
        x = torch.addmm(self._first_bias[:, None], weight.T, x).unflatten(1, shape)
        for weight, constant in pairs:
            if constant.shape[1:] != shape:
                constant = constant * inverse_rms(constant)
                x += torch.einsum("ih,i...->h...", weight, constant)
        return x


def initial_state(p: Tensor) -> dict[str, Tensor]:
    """momentum: (3, *shape). square: (*shape,). rows and columns: of the mean squares
    along one of the two longest dimensions, (3, ...)."""
    momentum = p.new_zeros((len(DECAYS), *p.shape))
    row_dim, column_dim = longest_dims(p)
    return {
        "momentum": momentum,
        "square": torch.zeros_like(p),
        "rows": momentum.mean(column_dim),
        "columns": momentum.mean(row_dim),
    }


def longest_dims(p: Tensor) -> tuple[int, int]:
    """The two longest dimensions, the longest last, counted from the last one."""
    *_, second, first = np.argsort(p.shape)
    return int(second) - p.dim(), int(first) - p.dim()


def features_of(p: Tensor, g: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """The groups of features, after `state` was updated in place. g: gradient.

    30 features in all, each (*shape,), or with 1 along a dimension in which it is
    constant; a group has its number of features in front.
    """
    decays = g.new_tensor(DECAYS)
    row_dim, column_dim = longest_dims(p)
    update_means(state["momentum"], g, decays)
    state["square"].mul_(SQUARE_DECAY).addcmul_(g, g, value=1 - SQUARE_DECAY)
    squares = g.square().add_(1e-30)
    update_means(state["rows"], squares.mean(column_dim), decays)
    update_means(state["columns"], squares.mean(row_dim), decays)
    momentum = state["momentum"]
    rows = state["rows"].unsqueeze(column_dim)
    columns = state["columns"].unsqueeze(row_dim)
    factors = _inverse_root(rows / (rows.mean(row_dim, keepdim=True) + 1e-9))
    factors = factors * _inverse_root(columns)
    inverse = (state["square"] + 1e-8).rsqrt()
    return [
        g[None],
        g.clamp(-0.1, 0.1)[None],
        p[None],
        momentum,
        state["square"][None],
        momentum * inverse,
        inverse[None],
        g * factors,
        (g * inverse)[None],
        rows,
        columns,
        (rows + 1e-8).rsqrt(),
        (columns + 1e-8).rsqrt(),
        momentum * factors,
    ]


def update_means(means: Tensor, x: Tensor, decays: Tensor) -> None:
    """Updates running means (3, *shape), one for each decay, in place."""
    of_mean = decays.view(-1, *[1] * x.dim())
    means.mul_(of_mean).add_((1 - of_mean) * x)


def _inverse_root(x: Tensor) -> Tensor:
    return x.clamp(min=1e-9).rsqrt()


def inverse_rms(x: Tensor) -> Tensor:
    """1 / the RMS over the last two dimensions, which are kept with length 1."""
    count = x.shape[-2] * x.shape[-1]
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return (norm.square() / count + 1e-9).rsqrt()
