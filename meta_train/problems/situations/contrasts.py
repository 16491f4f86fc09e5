"""Embeddings that are compared with those of other examples."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from meta_train.problems.common import FASHION_7, MNIST_7, MNIST_14, Build, Data
from meta_train.problems.networks.convolutional import group_norm, strided_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.objectives import contrastive_loss, neighbour_accuracy
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import supervised
from meta_train.problems.supervised import Objective, SupervisedProblem


def contrastive_divergence(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The supervised contrastive loss less its minimum, ().

    This is the mean Kullback-Leibler divergence of the similarities' softmax from equal
    shares of the examples with the same label. Its gradient is that of the loss.
    """
    alike = (labels[:, None] == labels).sum(1) - 1
    least = alike[alike > 0].log().sum() / (alike > 0).sum().clamp(min=1)
    return contrastive_loss(embeddings, labels) - least


DIVERGENCE = Objective(contrastive_divergence, neighbour_accuracy)


def _contrast(
    name: str, data: Data, build: Build, batch_size: int, steps: int
) -> SupervisedProblem:
    """Evaluated in batches as large as those of training, which decide the loss."""
    return supervised(
        name,
        data,
        build,
        DIVERGENCE,
        batch_size,
        steps,
        evaluation_batch=batch_size,
    )


_CONTRASTS: Kind = (
    [_contrast("contrast-fm7", FASHION_7, partial(mlp, (49, 96, 24)), 128, 300)],
    [
        _contrast(
            "contrast-m7",
            MNIST_7,
            partial(mlp, (49, 64, 64, 16), nn.GELU),
            96,
            300,
        )
    ],
    [
        _contrast(
            "contrast-cnn-m14",
            MNIST_14,
            partial(strided_cnn, (1, 12, 24, 32), group_norm, nn.ReLU),
            96,
            200,
        )
    ],
)


KINDS: dict[str, Kind] = {
    "contrasts": _CONTRASTS,
}
