"""Zoos: random architectures and training settings of their networks, and training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.image_datasets import Split, batch_indices
from tasks.networks.architectures import make_module
from tasks.networks.cnn import cnn_description

MOMENTUM = 0.9
"""Momentum of SGD."""
TEST_BATCH = 1000
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=MOMENTUM, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "rmsprop": torch.optim.RMSprop,
}
INITS = ("default", "glorot", "he", "orthogonal", "normal")
INIT_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "glorot": nn.init.xavier_normal_,
    "he": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
}
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
WILD_ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu")
RELU_LIKE = ("relu", "gelu", "silu")


@dataclass(frozen=True)
class TrainingRecipe:
    """One network and how it is trained.

    architecture: a description, see `tasks.networks.architectures`.
    init: of weights; "default" is that of the layers. init_std: of "normal".
    l2: weight decay that is part of the gradient.
    fraction: of the training images that is used.
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
    """A distribution of recipes.

    channels: of the images, 1 for gray ones.
    architecture: draws a description.
    lr: range of the learning rate, whose logarithm is uniform.
    """

    channels: int
    architecture: Callable[[Random], dict[str, Any]]
    inits: Sequence[str]
    lr: tuple[float, float]

    def sample_recipe(self, random: Random) -> TrainingRecipe:
        """Draws a recipe as in Unterthiner et al. 2020, appendix A.

        Runs are shorter here. So learning rates are higher than there (from 5e-4),
        L2 (to 1e-2) and dropout (to 0.7) are weaker, and half of the runs have no
        dropout.
        """
        return TrainingRecipe(
            architecture=self.architecture(random),
            optimizer=random.choice(list(OPTIMIZERS)),
            init=random.choice(self.inits),
            init_std=log_uniform(random, 1e-2, 0.5),
            lr=log_uniform(random, *self.lr),
            l2=log_uniform(random, 1e-8, 1e-3),
            dropout=random.choice((0.0, random.uniform(0, 0.5))),
            fraction=random.choice(FRACTIONS),
        )


def log_uniform(random: Random, low: float, high: float) -> float:
    return exp(random.uniform(log(low), log(high)))


def small_cnn(random: Random) -> dict[str, Any]:
    """Three convolutions of 16 channels: 4,970 parameters (Unterthiner et al. 2020)."""
    activations = [random.choice(("relu", "tanh"))] * 3
    channels, kernels = [1, 16, 16, 16], [3, 3, 3]
    strides, paddings = [2, 2, 2], [0, 0, 0]
    return cnn_description(channels, kernels, strides, activations, paddings=paddings)


def wild_park_cnn(random: Random) -> dict[str, Any]:
    """All layers differ (Kofinas et al. 2024, appendix E).

    Strides are 1 there. Here the first two are 2, so that a run takes seconds.
    """
    layers = random.randint(2, 5)
    channels = [1, *random.choices((4, 8, 16, 32), k=layers)]
    kernels = random.choices((3, 5, 7), k=layers)
    activations = random.choices(WILD_ACTIVATIONS, k=layers)
    # not from the previous layer, which is connected anyway
    skips = [random.choice((None, *range(layer - 1))) for layer in range(layers)]
    strides = [2, 2, 1, 1, 1][:layers]
    return cnn_description(channels, kernels, strides, activations, skips=skips)


def diverse_network(random: Random) -> dict[str, Any]:
    """Networks of five families (Lim et al. 2024, section 4.1)."""
    families = normed_cnn, sequence_cnn, residual_cnn, deep_sets, vit
    return random.choice(families)(random)


def normed_cnn(random: Random) -> dict[str, Any]:
    layers = random.randint(2, 4)
    channels = [3, *random.choices((8, 16, 24), k=layers)]
    kernels = random.choices((3, 5), k=layers)
    strides = [2, 2, 1, 1][:layers]
    activations = [random.choice(RELU_LIKE)] * layers
    norm = random.choice(("batch", "group"))
    return cnn_description(channels, kernels, strides, activations, norm=norm)


def sequence_cnn(random: Random) -> dict[str, Any]:
    """One-dimensional convolutions over the pixels row after row."""
    layers = random.randint(2, 4)
    channels = [3, *random.choices((8, 16, 32), k=layers)]
    kernels = random.choices((5, 9), k=layers)
    strides = [4, 4, 2, 1][:layers]
    activations = [random.choice(RELU_LIKE)] * layers
    norm = random.choice((None, "batch", "group"))
    return cnn_description(
        channels, kernels, strides, activations, norm=norm, dimensions=1
    )


def residual_cnn(random: Random) -> dict[str, Any]:
    """One layer, then residual blocks of two layers. The second block halves the
    side."""
    width = random.choice((8, 12, 16))
    layers = 1 + 2 * random.randint(1, 2)
    return cnn_description(
        [3, width, width, width, 2 * width, 2 * width][: 1 + layers],
        [3] * layers,
        strides=[2, 2, 1, 2, 1][:layers],
        activations=["relu"] * layers,
        skips=[None, None, 0, None, 2][:layers],
        norm=random.choice(("batch", "group")),
    )


def deep_sets(random: Random) -> dict[str, Any]:
    layers = random.randint(2, 4)
    return {
        "kind": "deep-sets",
        "channels": 3,
        "widths": random.choices((16, 24, 32), k=layers),
        "activation": random.choice(RELU_LIKE),
    }


def vit(random: Random) -> dict[str, Any]:
    return {
        "kind": "vit",
        "channels": 3,
        "width": random.choice((16, 24, 32)),
        "depth": random.randint(1, 3),
        "heads": random.choice((2, 4)),
        "patch": random.choice((4, 8)),
    }


ZOOS = {
    "small": Zoo(1, small_cnn, INITS, (1e-3, 3e-2)),
    "wild-park": Zoo(1, wild_park_cnn, INITS, (1e-3, 3e-2)),
    "diverse": Zoo(3, diverse_network, INITS[:1], (3e-4, 1e-2)),
}


class Checkpoint(NamedTuple):
    """A network at one step of its training. accuracy: on test images, 0 to 1."""

    step: int
    accuracy: float
    params: dict[str, Tensor]


def train(
    recipe: TrainingRecipe,
    images: Split,
    test: Split,
    steps: Sequence[int],
    batch_size: int,
    seed: int,
) -> list[Checkpoint] | None:
    """The network after each number of steps; None if the run diverged.

    Weights and dropout are drawn from torch's random numbers, batches from the seed.
    """
    model = make_module(recipe.architecture, dropout=recipe.dropout)
    initialise(model, recipe)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = OPTIMIZERS[recipe.optimizer](
        model.parameters(), lr=recipe.lr, weight_decay=recipe.l2
    )
    used = int(recipe.fraction * len(images))
    checkpoints = []
    for step in range(steps[-1]):
        index = batch_indices(used, batch_size, seed=seed, step=step)
        pixels, labels = images.batch(index)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        if step + 1 in steps:
            if not all(bool(p.isfinite().all()) for p in model.parameters()):
                return None
            params = {
                name: p.detach().clone(memory_format=torch.contiguous_format)
                for name, p in model.named_parameters()
            }
            checkpoints.append(Checkpoint(step + 1, accuracy(model, test), params))
    return checkpoints


def initialise(model: nn.Module, recipe: TrainingRecipe) -> None:
    """Initialises weights of convolutions and linear layers as in the recipe; their
    biases become zero."""
    if recipe.init == "default":
        return
    normal = partial(nn.init.normal_, std=recipe.init_std)
    init = INIT_FUNCTIONS.get(recipe.init, normal)
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def accuracy(model: nn.Module, test: Split) -> float:
    """Top-1 accuracy, without dropout."""
    model.eval()
    correct = 0
    for indices in torch.arange(len(test)).split(TEST_BATCH):
        images, labels = test.batch(indices)
        correct += int((model(images).argmax(1) == labels).sum())
    model.train()
    return correct / len(test)
