"""Differential equations that physics-informed networks solve."""

from collections.abc import Callable
from functools import cache
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_train.problems.networks.dense import mlp
from meta_train.problems.situations.generated import SIZE, drawn, held_out
from meta_train.problems.situations.problems import regress
from meta_train.problems.supervised import Batch, Data, Splits


class Equation(NamedTuple):
    """A differential equation with a known solution on the cube [0, length]^dimensions.

    residual: (u at points, points) -> 0 where u solves the equation, else about 1.
    trial: (points, outputs of a network) -> u, which has the boundary values.
    """

    dimensions: int
    length: float
    residual: Callable[[Tensor, Tensor], Tensor]
    trial: Callable[[Tensor, Tensor], Tensor]
    solution: Callable[[Tensor], Tensor]


class Solver(nn.Module):
    """Returns residuals at points in training mode, the solution in evaluation mode.

    The loss on residuals is that of Raissi et al. 2019 without their term for the
    boundary: the trial solution has the boundary values for any weights (Lagaris et al.
    1998).
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


def collocation(equation: Equation) -> Data:
    """Points (b, d) of the cube. Targets (b,): zeros, in evaluation the solution."""

    def with_solutions(count: int) -> Batch:
        points = equation.length * torch.rand(count, equation.dimensions)
        return points, equation.solution(points)

    train = drawn(with_solutions, SIZE).map(lambda x, u: (x, torch.zeros_like(u)))
    return cache(lambda: Splits(train, *held_out(with_solutions)))


def slopes(values: Tensor, points: Tensor) -> Tensor:
    """Gradients (b, d) of values (b,), each with respect to its own point."""
    (gradients,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return gradients


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
    laplacian = slopes(first[:, 0], x)[:, 0] + slopes(first[:, 1], x)[:, 1]
    return (laplacian + 4 * u) / (5 * pi**2 - 4) + _mode(x)


DAMPING, STIFFNESS = 0.2, 4.0


def _oscillation(t: Tensor) -> Tensor:
    time = t[:, 0]
    frequency = (STIFFNESS - DAMPING**2) ** 0.5
    return (-DAMPING * time).exp() * (frequency * time).sin() / frequency


def _oscillator(u: Tensor, t: Tensor) -> Tensor:
    """u'' + 2 d u' + s u = 0"""
    first = slopes(u, t)[:, 0]
    return slopes(first, t)[:, 0] + 2 * DAMPING * first + STIFFNESS * u


def _decaying_wave(x: Tensor) -> Tensor:
    return (-x[:, 1]).exp() * (pi * x[:, 0]).sin()


def _heat(u: Tensor, x: Tensor) -> Tensor:
    """u_t = u_xx / pi^2"""
    first = slopes(u, x)
    return first[:, 1] - slopes(first[:, 0], x)[:, 0] / pi**2


def _heat_trial(x: Tensor, u: Tensor) -> Tensor:
    space, time = x.unbind(1)
    return (pi * space).sin() + time * space * (1 - space) * u


POISSON = Equation(
    1, 1.0, _poisson, lambda x, u: 4 * x[:, 0] * (1 - x[:, 0]) * u, _wave
)
HELMHOLTZ = Equation(2, 1.0, _helmholtz, lambda x, u: (x * (1 - x)).prod(1) * u, _mode)
OSCILLATOR = Equation(
    1, 3.0, _oscillator, lambda t, u: t[:, 0] + t[:, 0] ** 2 * u, _oscillation
)
HEAT = Equation(2, 1.0, _heat, _heat_trial, _decaying_wave)


# in turn for development, validation and test
PROBLEMS = {
    "equation-poisson": regress(
        collocation(POISSON), 64, 200, Solver, POISSON, (32, 32)
    ),
    "equation-helmholtz": regress(
        collocation(HELMHOLTZ), 64, 500, Solver, HELMHOLTZ, (48, 48)
    ),
    "equation-oscillator": regress(
        collocation(OSCILLATOR), 64, 600, Solver, OSCILLATOR, (32, 32, 32)
    ),
}
