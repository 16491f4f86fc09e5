"""Differential equations, solved by networks that are trained on their residuals."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import SIZE, Generated, held_out
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import fit
from meta_train.problems.supervised import Batch, Splits, SupervisedProblem


class Equation(NamedTuple):
    """An equation on a cube of which the solution is known.

    residual: (u at points, their coordinates) -> 0 where u solves it, of size about 1.
    trial: (points, values of a network) -> u that has the boundary values.
    """

    dimensions: int
    length: float
    residual: Callable[[Tensor, Tensor], Tensor]
    trial: Callable[[Tensor, Tensor], Tensor]
    solution: Callable[[Tensor], Tensor]


class Solver(nn.Module):
    """In training residuals at points, in evaluation the solution there.

    The loss on residuals is that of Raissi et al. 2019. It departs from them at the
    boundary: it has no term for it, since the trial solution has the boundary values
    for any weights (Lagaris et al. 1998).
    """

    def __init__(self, equation: Equation, widths: tuple[int, ...]):
        super().__init__()
        self.equation = equation
        self.layers = mlp((equation.dimensions, *widths, 1), nn.Tanh)

    def forward(self, points: Tensor) -> Tensor:
        """points: (b, d); returns (b,)"""
        if not self.training:
            return self._solution(points)
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            return self.equation.residual(self._solution(points), points)

    def _solution(self, points: Tensor) -> Tensor:
        return self.equation.trial(points, self.layers(points).squeeze(1))


@cache
def collocation(equation: Equation) -> Splits:
    """Points (b, d) of the cube; targets (b,): zeros, and to evaluate the solution."""

    def points(count: int) -> Tensor:
        return equation.length * torch.rand(count, equation.dimensions)

    def to_train(count: int) -> Batch:
        return points(count), torch.zeros(count)

    def to_evaluate(count: int) -> Batch:
        x = points(count)
        return x, equation.solution(x)

    evaluated = (held_out(to_evaluate, split) for split in (1, 2))
    return Splits(Generated(to_train, SIZE), *evaluated)


def slopes(values: Tensor, points: Tensor) -> Tensor:
    """Gradients (b, d) of values (b,), each of which is of its own point."""
    return torch.autograd.grad(values.sum(), points, create_graph=True)[0]


def _wave(x: Tensor) -> Tensor:
    return (2 * pi * x[:, 0]).sin()


def _poisson(u: Tensor, x: Tensor) -> Tensor:
    """u'' = -(2 pi)^2 sin(2 pi x)"""
    second = slopes(slopes(u, x)[:, 0], x)[:, 0]
    return second / (2 * pi) ** 2 + _wave(x)


def _mode(x: Tensor) -> Tensor:
    return (pi * x[:, 0]).sin() * (2 * pi * x[:, 1]).sin()


def _helmholtz(u: Tensor, x: Tensor) -> Tensor:
    """u_xx + u_yy + 4 u = (4 - 5 pi^2) sin(pi x) sin(2 pi y)"""
    first = slopes(u, x)
    second = slopes(first[:, 0], x)[:, 0] + slopes(first[:, 1], x)[:, 1]
    return (second + 4 * u) / (5 * pi**2 - 4) + _mode(x)


DAMPING, STIFFNESS = 0.2, 4.0


def _oscillation(t: Tensor) -> Tensor:
    frequency = (STIFFNESS - DAMPING**2) ** 0.5
    return (-DAMPING * t[:, 0]).exp() * (frequency * t[:, 0]).sin() / frequency


def _oscillator(u: Tensor, t: Tensor) -> Tensor:
    """u'' + 2 d u' + s u = 0"""
    first = slopes(u, t)[:, 0]
    second = slopes(first, t)[:, 0]
    return second + 2 * DAMPING * first + STIFFNESS * u


POISSON = Equation(
    1, 1.0, _poisson, lambda x, u: 4 * x[:, 0] * (1 - x[:, 0]) * u, _wave
)
HELMHOLTZ = Equation(2, 1.0, _helmholtz, lambda x, u: (x * (1 - x)).prod(1) * u, _mode)
OSCILLATOR = Equation(
    1, 3.0, _oscillator, lambda t, u: t[:, 0] + t[:, 0] ** 2 * u, _oscillation
)


def _equation(
    name: str, equation: Equation, widths: tuple[int, ...], steps: int
) -> SupervisedProblem:
    return fit(
        name,
        partial(collocation, equation),
        partial(Solver, equation, widths),
        64,
        steps,
    )


_EQUATIONS: Kind = (
    [_equation("equation-poisson", POISSON, (32, 32), 200)],
    [_equation("equation-helmholtz", HELMHOLTZ, (48, 48), 500)],
    [_equation("equation-oscillator", OSCILLATOR, (32, 32, 32), 600)],
)


KINDS: dict[str, Kind] = {
    "equations": _EQUATIONS,
}
