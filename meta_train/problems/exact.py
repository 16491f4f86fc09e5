"""Full-batch fits that can be made exact: images, sounds, distances, equations, tables.

Every step has the same batch, and evaluation uses the training data. Equations train on
residuals and are evaluated on their solution. Names begin with the kind of network.
"""

from functools import cache, partial
from math import isqrt, pi

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.images import picture, pixels, pooled_splits
from meta_train.problems.networks.dense import Siren, autoencoder, mlp
from meta_train.problems.situations import generated
from meta_train.problems.situations.equations import (
    HEAT,
    OSCILLATOR,
    POISSON,
    Equation,
    Solver,
)
from meta_train.problems.supervised import (
    REGRESS,
    Data,
    Examples,
    Splits,
    SupervisedProblem,
    maker,
    tensor_examples,
)
from tasks.networks.siren import pixel_grid

POINTS = 512  # of distances and sounds
COLLOCATION_POINTS = 128
# Cycles per image (Tancik et al. 2020 use 10 for images of 512 pixels a side).
BANDWIDTH = 5.0
FEATURES = pi * BANDWIDTH * generated.fixed(2, 64, seed=31)
# Sitzmann et al. 2020 scale the coordinate of sounds, so that sines begin faster.
TIME_SCALE = 10.0
CIRCLES = (-0.4, -0.3, 0.35), (0.4, 0.2, 0.25), (-0.1, 0.6, 0.2)  # centre and radius
BOX = 0.5, 0.3  # half of width and height


def on_itself(examples: Examples) -> Splits:
    """The same examples for training, validation and test."""
    return Splits(examples, examples, examples)


def few(data: Data, count: int) -> Data:
    """The first `count` validation examples, which are not drawn anew."""
    return lambda: on_itself(Examples(count, data().validation.batch))


@cache
def mosaic(name: str, pool: int, indices: tuple[int, ...] = (0,)) -> Splits:
    """Pixels (n, channels) in [-1, 1] as a function of coordinates (n, 2).

    indices: of training images that fill a square; their number is a square.
    pool: kernel size of average pooling.
    """
    images = pooled_splits(name, pool, gray=False)[0].images[list(indices)]
    rows = isqrt(len(indices))
    image = images.unflatten(0, (rows, rows))
    image = image.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    values = image.flatten(1).mT.float() / 127.5 - 1
    return on_itself(tensor_examples(pixel_grid(*image.shape[1:]), values))


def with_features(data: Data) -> Data:
    """Random Fourier features (n, 128) in place of coordinates (Tancik et al. 2020)."""

    def expanded(points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        angles = points @ FEATURES
        return torch.cat([angles.sin(), angles.cos()], 1), values

    return lambda: data().map(expanded)


@cache
def chirps() -> Splits:
    """The mean of three sines whose frequency rises or falls with time.

    inputs: time (n, 1) in [-10, 10]; targets: (n, 1)
    """
    time = torch.linspace(0, 1, POINTS)[:, None]
    begin, change = torch.tensor([[5.0, 20.0, 50.0], [10.0, 20.0, -30.0]])  # cycles
    wave = (2 * pi * (begin * time + change * time**2 / 2)).sin().mean(1, True)
    return on_itself(tensor_examples(TIME_SCALE * (2 * time - 1), wave))


@cache
def signed_distances(shape: str) -> Splits:
    """Distances (n, 1) of points (n, 2) of the square [-1, 1]^2, negative inside.

    shape: "circles", the union of three, or "box".
    """
    with seeded(4, 9):
        points = 2 * torch.rand(POINTS, 2) - 1
    if shape == "circles":
        circles = torch.tensor(CIRCLES)
        distances = torch.cdist(points, circles[:, :2]) - circles[:, 2]
        return on_itself(tensor_examples(points, distances.amin(1, True)))
    beyond = points.abs() - torch.tensor(BOX)
    outside = beyond.clamp(min=0).norm(dim=1, keepdim=True)
    inside = beyond.amax(1, True).clamp(max=0)
    return on_itself(tensor_examples(points, outside + inside))


@cache
def fixed_collocation(equation: Equation) -> Splits:
    """Points (n, d) of the cube. Targets (n,): zeros, in evaluation the solution."""
    with seeded(5, 9):
        points = equation.length * torch.rand(COLLOCATION_POINTS, equation.dimensions)
    solved = tensor_examples(points, equation.solution(points))
    train = solved.map(lambda x, u: (x, torch.zeros_like(u)))
    return Splits(train, solved, solved)


fit = partial(maker(SupervisedProblem, REGRESS), batch_size=None, steps=300)
IMAGE_28 = partial(mosaic, "fashion-mnist", 1)
IMAGE_14 = partial(mosaic, "fashion-mnist", 2)
PIXELS_14 = partial(pixels, "fashion-mnist", 2)


def solve(equation: Equation) -> SupervisedProblem:
    """A physics-informed network at fixed points."""
    data = partial(fixed_collocation, equation)
    return fit(data, network=Solver, equation=equation, widths=(32, 32))


EXACT = {
    "siren-fm28": fit(IMAGE_28, network=Siren, widths=(2, 32, 32, 1)),
    "siren-fm14": fit(IMAGE_14, network=Siren, widths=(2, 32, 32, 1)),
    "siren-slow-fm28": fit(
        IMAGE_28, network=Siren, widths=(2, 64, 64, 64, 64, 1), frequency=10.0
    ),
    "siren-chirps": fit(chirps, network=Siren, widths=(1, 64, 64, 1)),
    "siren-box": fit(
        partial(signed_distances, "box"), network=Siren, widths=(2, 64, 64, 1)
    ),
    "features-fm28": fit(
        with_features(IMAGE_28), network=mlp, widths=(128, 64, 64, 1)
    ),
    "features-c32": fit(
        with_features(partial(picture, 11, gray=False)),
        network=mlp,
        widths=(128, 64, 64, 3),
    ),
    "gelu-circles": fit(
        partial(signed_distances, "circles"),
        network=mlp,
        widths=(2, 64, 64, 1),
        activation=nn.GELU,
    ),
    "solver-poisson": solve(POISSON),
    "solver-oscillator": solve(OSCILLATOR),
    "solver-heat": solve(HEAT),
    "tanh-products": fit(
        few(generated.products, 64),
        network=mlp,
        widths=(8, 64, 64, 7),
        activation=nn.Tanh,
    ),
    "gelu-sines": fit(
        few(generated.sines, 64), network=mlp, widths=(16, 64, 4), activation=nn.GELU
    ),
    "autoencoder-fm14": fit(
        few(PIXELS_14, 16), network=autoencoder, widths=(196, 64, 32), image=(1, 14, 14)
    ),
    "siren-c64": fit(
        partial(mosaic, "cifar10", 1, (0, 1, 2, 3)),
        network=Siren,
        widths=(2, 64, 64, 64, 3),
    ),
}
