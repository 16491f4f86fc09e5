"""Full-batch fits that can be made exact: images, sounds, distances, equations, tables.

Every step has the same batch, and evaluation uses the training data. Equations train on
residuals and are evaluated on their solution.
"""

from functools import cache, partial
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.images import picture, pixels
from meta_train.problems.networks.dense import Siren, autoencoder, mlp
from meta_train.problems.situations import equations, generated
from meta_train.problems.situations.equations import Equation, Solver
from meta_train.problems.supervised import (
    Batch,
    Data,
    Examples,
    Splits,
    SupervisedProblem,
    on_batches,
    on_itself,
    regress,
)

POINTS = 512  # of a sound or of distances
# Five cycles per image (Tancik et al. 2020 use 10 for images of 512 pixels a side).
FEATURES = 5 * pi * generated.fixed(2, 64, seed=31)
# Sounds need faster sines: Sitzmann et al. 2020, too, scale time.
TIME_SCALE = 10.0
CIRCLES = (-0.4, -0.3, 0.35), (0.4, 0.2, 0.25), (-0.1, 0.6, 0.2)  # centre and radius


def few(data: Data, count: int) -> Data:
    """The first `count` validation examples, which are not drawn anew."""
    return lambda: Splits(*[Examples(count, data().validation.batch)] * 3)


@on_batches
def featured(points: Tensor, values: Tensor) -> Batch:
    """Random Fourier features (n, 128) in place of coordinates (Tancik et al. 2020)."""
    angles = points @ FEATURES
    return torch.cat([angles.sin(), angles.cos()], 1), values


@cache
def chirps() -> Splits:
    """The mean (n, 1) of three sines, with frequencies linear in time (n, 1)."""
    time = torch.linspace(0, 1, POINTS)[:, None]
    begin, change = torch.tensor([[5.0, 20.0, 50.0], [10.0, 20.0, -30.0]])  # cycles
    waves = (2 * pi * (begin * time + change * time**2 / 2)).sin()
    return on_itself(TIME_SCALE * (2 * time - 1), waves.mean(1, True))


@cache
def circles() -> Splits:
    """Signed distances (n, 1) of points (n, 2) to three circles, negative inside."""
    with seeded(4, 9):
        points = 2 * torch.rand(POINTS, 2) - 1
    centres, radii = torch.tensor(CIRCLES).split([2, 1], 1)
    return on_itself(points, (torch.cdist(points, centres) - radii.mT).amin(1, True))


@cache
def collocation(equation: Equation) -> Splits:
    """128 points (n, d). Targets (n,): zeros, in evaluation the solution."""
    with seeded(5, 9):
        points = equation.length * torch.rand(128, equation.dimensions)
    solved = on_itself(points, equation.solution(points))
    train = solved.train.map(lambda x, u: (x, torch.zeros_like(u)))
    return solved._replace(train=train)


def fit(data: Data, *network: Any, **settings: Any) -> SupervisedProblem:
    """network: a function or class, followed by its arguments."""
    return regress(data, None, 300, *network, **settings)


def solve(equation: Equation) -> SupervisedProblem:
    """A physics-informed network at fixed points."""
    return fit(partial(collocation, equation), Solver, equation, (32, 32))


IMAGE_28 = partial(picture, "fashion-mnist")
IMAGE_14 = partial(picture, "fashion-mnist", 2)
COLOURS_32 = partial(picture, "cifar10", first=11)
COLOURS_64 = partial(picture, "cifar10", count=4)
PIXELS_14 = few(partial(pixels, "fashion-mnist", 2), 16)

EXACT = {
    "siren-fm28": fit(IMAGE_28, Siren, (2, 32, 32, 1)),
    "siren-fm14": fit(IMAGE_14, Siren, (2, 32, 32, 1)),
    "siren-slow-fm28": fit(IMAGE_28, Siren, (2, 64, 64, 64, 64, 1), frequency=10.0),
    "siren-chirps": fit(chirps, Siren, (1, 64, 64, 1)),
    "siren-circles": fit(circles, Siren, (2, 64, 64, 1)),
    "gelu-circles": fit(circles, mlp, (2, 64, 64, 1), nn.GELU),
    "features-fm28": fit(featured(IMAGE_28), mlp, (128, 64, 64, 1)),
    "features-c32": fit(featured(COLOURS_32), mlp, (128, 64, 64, 3)),
    "solver-poisson": solve(equations.POISSON),
    "solver-oscillator": solve(equations.OSCILLATOR),
    "solver-heat": solve(equations.HEAT),
    "tanh-products": fit(few(generated.products, 64), mlp, (8, 64, 64, 7), nn.Tanh),
    "gelu-sines": fit(few(generated.sines, 64), mlp, (16, 64, 4), nn.GELU),
    "autoencoder-fm14": fit(PIXELS_14, autoencoder, (196, 64, 32), (1, 14, 14)),
    "siren-c64": fit(COLOURS_64, Siren, (2, 64, 64, 64, 3)),
}
