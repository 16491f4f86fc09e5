"""Parameters that begin at zero and have far to go, and embeddings that are compared."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meta_train.problems.common import (
    FASHION_14,
    GRAY_8,
    MNIST_7,
    MNIST_14,
    classify,
    fit,
)
from meta_train.problems.networks.convolutional import group_norm, strided_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.objectives import CONTRAST
from meta_train.problems.situations import adapted, starts
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.supervised import Batch, Objective, SupervisedProblem


class Scaled(nn.Module):
    """A scale and a shift of each input and one of all, all of which begin at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, width); returns the same"""
        return self.scale * x + self.shift + self.offset

    @staticmethod
    def examples(count: int) -> Batch:
        """24 normal numbers, stretched and shifted by several times their size."""
        x = torch.randn(count, 24)
        stretch, shift = 4 * fixed(2, 24, seed=18)
        return x, stretch * x + shift + 3 + 0.1 * torch.randn_like(x)

    @staticmethod
    def other_examples(count: int) -> Batch:
        """The same with less stretch and more noise."""
        x = torch.randn(count, 24)
        stretch, shift = fixed(2, 24, seed=19)
        return x, stretch * x + shift - 1 + 0.5 * torch.randn_like(x)


class Tempered(nn.Module):
    """Embeddings of two noisy views of a batch, and a temperature that begins at 1.

    The logarithm of the temperature is a parameter (CLIP, Radford et al. 2021).
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__()
        self.layers = mlp(widths)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        """images: (b, ...); returns logits (b, b): which view belongs to which"""
        views = [
            F.normalize(self.layers(images + 0.5 * torch.randn_like(images)), dim=1)
            for _ in range(2)
        ]
        return views[0] @ views[1].mT * (-self.log_temperature).exp()


def match_views(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of finding the other view of the same image, (); labels: not read."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


MATCH_VIEWS = Objective(match_views)


_ZEROS: Kind = (
    [
        fit(
            "zeros-scales-300",
            partial(generated, Scaled.examples),
            partial(Scaled, 24),
            32,
            300,
        ),
        classify(
            "zeros-gates-200",
            FASHION_14,
            partial(starts.Gates, 196, 48, 10, 10),
            64,
            200,
        ),
    ],
    [
        classify(
            "zeros-prompt-60",
            adapted.SECOND_TEXT,
            partial(adapted.with_prompt, 8),
            16,
            60,
        ),
        SupervisedProblem(
            "zeros-temperature-300",
            MNIST_7,
            partial(Tempered, (49, 64, 32)),
            MATCH_VIEWS,
            64,
            300,
        ),
    ],
    [
        fit(
            "zeros-scales-100",
            partial(generated, Scaled.other_examples),
            partial(Scaled, 24),
            64,
            100,
        ),
        classify(
            "zeros-gates-100", MNIST_14, partial(starts.Gates, 196, 32, 20, 10), 64, 100
        ),
    ],
)


_CONTRASTS: Kind = (
    [
        SupervisedProblem(
            "contrast-gray-8", GRAY_8, partial(mlp, (64, 96, 24)), CONTRAST, 128, 400
        )
    ],
    [
        SupervisedProblem(
            "contrast-m7",
            MNIST_7,
            partial(mlp, (49, 64, 64, 16), nn.GELU),
            CONTRAST,
            96,
            300,
        )
    ],
    [
        SupervisedProblem(
            "contrast-cnn-m14",
            MNIST_14,
            partial(strided_cnn, (1, 12, 24, 32), group_norm, nn.ReLU),
            CONTRAST,
            96,
            200,
        )
    ],
)


KINDS: dict[str, Kind] = {
    "zeros at first": _ZEROS,
    "contrasts": _CONTRASTS,
}
