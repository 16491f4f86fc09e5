"""Trains one network of a zoo, and keeps it at several steps."""

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
    run: TrainingRecipe,
    images: Split,
    test: Split,
    steps: Sequence[int],
    batch_size: int,
    seed: int,
) -> list[Checkpoint] | None:
    """The network after each of so many steps; None if it diverged.

    Weights and dropout are drawn from torch's random numbers, batches from the seed.
    """
    model = make_module(run.architecture, dropout=run.dropout)
    initialise(model, run)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = OPTIMIZERS[run.optimizer](
        model.parameters(), lr=run.lr, weight_decay=run.l2
    )
    used = int(run.fraction * len(images))
    found = []
    for step in range(steps[-1]):
        pixels, labels = images.batch(
            batch_indices(used, batch_size, seed=seed, step=step)
        )
        optimizer.zero_grad()
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        if step + 1 in steps:
            if not is_finite(model):
                return None
            found.append(Checkpoint(step + 1, accuracy(model, test), parameters(model)))
    return found


def initialise(model: nn.Module, run: TrainingRecipe) -> None:
    """Draws weights of convolutions and linear layers as the run says; their biases
    become zero."""
    if run.init == "default":
        return
    init = INITS.get(run.init, partial(nn.init.normal_, std=run.init_std))
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def accuracy(model: nn.Module, test: Split) -> float:
    """Share of images whose label has the largest output, without dropout."""
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
