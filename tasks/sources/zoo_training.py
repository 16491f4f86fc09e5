"""Trains one network of a zoo, and stores it at several steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.image_datasets import Split, batch_indices
from tasks.networks.architectures import make_module
from tasks.sources.zoo_recipes import TrainingRecipe

MOMENTUM = 0.9
"""Of SGD."""
TEST_BATCH = 1000
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=MOMENTUM, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "rmsprop": torch.optim.RMSprop,
}
INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "glorot": nn.init.xavier_normal_,
    "he": nn.init.kaiming_normal_,
    "orthogonal": nn.init.orthogonal_,
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
    """The network after each number of steps; None if the training diverged.

    Weights and dropout are drawn from torch's random numbers, batches from the seed.
    """
    model = make_module(recipe.architecture, dropout=recipe.dropout)
    initialise(model, recipe)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    make_optimizer = OPTIMIZERS[recipe.optimizer]
    optimizer = make_optimizer(model.parameters(), lr=recipe.lr, weight_decay=recipe.l2)
    used = int(recipe.fraction * len(images))
    checkpoints = []
    for step in range(steps[-1]):
        index = batch_indices(used, batch_size, seed=seed, step=step)
        pixels, labels = images.batch(index)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        if step + 1 in steps:
            if not is_finite(model):
                return None
            checkpoint = Checkpoint(step + 1, accuracy(model, test), parameters(model))
            checkpoints.append(checkpoint)
    return checkpoints


def initialise(model: nn.Module, recipe: TrainingRecipe) -> None:
    """Initialises weights of convolutions and linear layers as in the recipe; their
    biases become zero."""
    if recipe.init == "default":
        return
    normal = partial(nn.init.normal_, std=recipe.init_std)
    init = INITS.get(recipe.init, normal)
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


def is_finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters."""
    copies = {}
    for name, p in model.named_parameters():
        copies[name] = p.detach().clone(memory_format=torch.contiguous_format)
    return copies
