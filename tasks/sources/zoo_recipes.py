"""What networks of a zoo are and how they are trained, drawn from random numbers of
each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from random import Random
from typing import Any

from tasks.networks.cnn import describe

OPTIMIZERS = ("sgd", "adam", "rmsprop")
INITS = ("default", "glorot", "he", "orthogonal", "normal")
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
WILD_ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu")


@dataclass(frozen=True)
class TrainingRecipe:
    """One training.

    architecture: see `tasks.networks.architectures`.
    init: of weights, "default" for the layers' own; init_std is that of "normal".
    l2: weight decay that is part of the gradient.
    fraction: of the training images.
    """

    architecture: Mapping[str, Any]
    optimizer: str
    init: str
    init_std: float
    lr: float
    l2: float
    dropout: float
    fraction: float


@dataclass(frozen=True)
class Zoo:
    """What runs are drawn from.

    channels: of images, 1 for gray ones. lr: the range, of uniform logarithms.
    """

    channels: int
    architecture: Callable[[Random], dict[str, Any]]
    inits: Sequence[str]
    lr: tuple[float, float]

    def run(self, random: Random) -> TrainingRecipe:
        """Settings as in Unterthiner et al. 2020, appendix A.

        Trainings are short here, so that learning rates are not so small (there from
        5e-4), L2 (to 1e-2) and dropout (to .7) not so strong, and half of the runs have
        no dropout.
        """
        return TrainingRecipe(
            architecture=self.architecture(random),
            optimizer=random.choice(OPTIMIZERS),
            init=random.choice(self.inits),
            init_std=log_uniform(random, 1e-2, 0.5),
            lr=log_uniform(random, *self.lr),
            l2=log_uniform(random, 1e-8, 1e-3),
            dropout=random.choice((0.0, random.uniform(0, 0.5))),
            fraction=random.choice(FRACTIONS),
        )


def log_uniform(random: Random, low: float, high: float) -> float:
    return exp(random.uniform(log(low), log(high)))


def small(random: Random) -> dict[str, Any]:
    """Three convolutions of 16 channels: 4,970 parameters (Unterthiner et al. 2020)."""
    return describe(
        channels=[1, 16, 16, 16],
        kernels=[3, 3, 3],
        strides=[2, 2, 2],
        activations=[random.choice(("relu", "tanh"))] * 3,
        paddings=[0, 0, 0],
    )


def wild_park(random: Random) -> dict[str, Any]:
    """Layers that differ in every way (Kofinas et al. 2024, appendix E).

    There strides are 1; here two of 2 let them be trained in seconds.
    """
    layers = random.randint(2, 5)
    return describe(
        channels=[1, *random.choices((4, 8, 16, 32), k=layers)],
        kernels=random.choices((3, 5, 7), k=layers),
        strides=[2, 2, 1, 1, 1][:layers],
        activations=random.choices(WILD_ACTIVATIONS, k=layers),
        # from any layer but the one before, which is there anyway
        skips=[random.choice((None, *range(layer - 1))) for layer in range(layers)],
    )


def diverse(random: Random) -> dict[str, Any]:
    """Networks of five families (Lim et al. 2024, section 4.1)."""
    families = normed_cnn, sequence_cnn, residual, deep_sets, vit
    return random.choice(families)(random)


def normed_cnn(random: Random) -> dict[str, Any]:
    layers = random.randint(2, 4)
    return describe(
        channels=[3, *random.choices((8, 16, 24), k=layers)],
        kernels=random.choices((3, 5), k=layers),
        strides=[2, 2, 1, 1][:layers],
        activations=[random.choice(("relu", "gelu", "silu"))] * layers,
        norm=random.choice(("batch", "group")),
    )


def sequence_cnn(random: Random) -> dict[str, Any]:
    """Convolutions of one dimension, over the pixels row after row."""
    layers = random.randint(2, 4)
    return describe(
        channels=[3, *random.choices((8, 16, 32), k=layers)],
        kernels=random.choices((5, 9), k=layers),
        strides=[4, 4, 2, 1][:layers],
        activations=[random.choice(("relu", "gelu", "silu"))] * layers,
        norm=random.choice((None, "batch", "group")),
        dimensions=1,
    )


def residual(random: Random) -> dict[str, Any]:
    """A first layer, then blocks of two with a skip around each, the second of half the
    side."""
    width = random.choice((8, 12, 16))
    blocks = random.randint(1, 2)
    layers = 1 + 2 * blocks
    skips = [None if layer % 2 or not layer else layer - 2 for layer in range(layers)]
    return describe(
        channels=[3, width, width, width, 2 * width, 2 * width][: 1 + layers],
        kernels=[3] * layers,
        strides=[2, 2, 1, 2, 1][:layers],
        activations=["relu"] * layers,
        skips=skips,
        norm=random.choice(("batch", "group")),
    )


def deep_sets(random: Random) -> dict[str, Any]:
    layers = random.randint(2, 4)
    widths = random.choices((16, 24, 32), k=layers)
    activation = random.choice(("relu", "gelu", "silu"))
    return {
        "kind": "deep-sets",
        "channels": 3,
        "widths": widths,
        "activation": activation,
    }


def vit(random: Random) -> dict[str, Any]:
    sizes = {
        "width": random.choice((16, 24, 32)),
        "depth": random.randint(1, 3),
    }
    parts = {"heads": random.choice((2, 4)), "patch": random.choice((4, 8))}
    return {"kind": "vit", "channels": 3, **sizes, **parts}


ZOOS = {
    "small": Zoo(1, small, INITS, (1e-3, 3e-2)),
    "wild-park": Zoo(1, wild_park, INITS, (1e-3, 3e-2)),
    "diverse": Zoo(3, diverse, INITS[:1], (3e-4, 1e-2)),
}
