"""Contrastive learning."""

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
    """The supervised contrastive loss minus its minimum, ().

    It is the mean Kullback-Leibler divergence between the uniform distribution over the
    examples with the same label and the softmax of the similarities.
    """
    alike = (labels[:, None] == labels).sum(1) - 1
    minimum = alike[alike > 0].log().sum() / (alike > 0).sum().clamp(min=1)
    return contrastive_loss(embeddings, labels) - minimum


DIVERGENCE = Objective(contrastive_divergence, neighbour_accuracy)


def _contrast(
    name: str, data: Data, build: Build, batch_size: int, steps: int
) -> SupervisedProblem:
    """The loss depends on the batch size, so evaluation has that of training."""
    return supervised(
        name, data, build, DIVERGENCE, batch_size, steps, evaluation_batch=batch_size
    )


MLP = partial(mlp, (49, 96, 24))
DEEP_MLP = partial(mlp, (49, 64, 64, 16), nn.GELU)
CNN = partial(strided_cnn, (1, 12, 24, 32), group_norm, nn.ReLU)

KINDS = {
    "contrasts": Kind(
        developing=[_contrast("contrast-fm7", FASHION_7, MLP, 128, 300)],
        validating=[_contrast("contrast-m7", MNIST_7, DEEP_MLP, 96, 300)],
        testing=[_contrast("contrast-cnn-m14", MNIST_14, CNN, 96, 200)],
    )
}
