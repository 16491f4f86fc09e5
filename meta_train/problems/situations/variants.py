"""Changes of problems: clipped gradients, wrong labels, contrasts, bfloat16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from meta_train.problems.images import FASHION_7, FASHION_14, MNIST_7, MNIST_14
from meta_train.problems.networks.convolutional import paper_cnn, plain_cnn, strided_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import CharacterRnn, RowRnn, Vit
from meta_train.problems.situations.problems import (
    REGRESS_WITH_FLOOR,
    Situation,
    classify,
)
from meta_train.problems.situations.tables import unscaled_regression
from meta_train.problems.situations.texts import CODE_0
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Batch,
    Data,
    Examples,
    Objective,
    contrastive_loss,
    maker,
    neighbour_accuracy,
)
from meta_train.problems.text import VOCABULARY

MAX_NORM = 1.0


class ClippedProblem(Situation):
    """A problem whose gradient is clipped to `MAX_NORM`, as `clip_grad_norm_` does.

    `loss` has the value of the problem's loss and the clipped gradient. It has no
    second derivatives.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = super().loss(model, batch)
        if not loss.requires_grad:
            return loss
        params = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, params)
        norm = torch.stack([g.norm() for g in grads]).norm()
        factor = (MAX_NORM / (norm + 1e-6)).clamp(max=1)
        # linear in the parameters, with the clipped gradient
        pairs = zip(params, grads, strict=True)
        linear = torch.stack([(factor * g * p).sum() for p, g in pairs]).sum()
        return loss.detach() + (linear - linear.detach())


def mislabelled(data: Data, share: float, limit: int) -> Data:
    """Splits with `limit` training examples, a share of them with random labels."""
    generator = torch.Generator().manual_seed(round(1000 * share) + limit)
    labels = torch.randint(10, (limit,), generator=generator)
    is_right = torch.rand(limit, generator=generator) >= share

    def batch(indices: Tensor) -> Batch:
        inputs, targets = data().train.batch(indices)
        return inputs, torch.where(is_right[indices], targets, labels[indices])

    return lambda: data()._replace(train=Examples(limit, batch))


def contrastive_divergence(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The supervised contrastive loss minus its minimum, ().

    It is the mean Kullback-Leibler divergence between the uniform distribution over the
    examples with the same label and the softmax of the similarities.
    """
    alike = (labels[:, None] == labels).sum(1) - 1
    has_others = alike > 0
    minimum = alike[has_others].log().sum() / has_others.sum().clamp(min=1)
    return contrastive_loss(embeddings, labels) - minimum


class BFloat16(nn.Module):
    """A network with bfloat16 parameters and float32 inputs and outputs.

    network: a function or class, called with the arguments after it.
    """

    def __init__(self, network: Callable[..., nn.Module], *args: Any):
        super().__init__()
        self.model = network(*args).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16()).float()


_contrast = maker(
    Situation, Objective(contrastive_divergence, neighbour_accuracy), equal_batches=True
)
_clipped = maker(ClippedProblem, CLASSIFY)
_clipped_regression = maker(ClippedProblem, REGRESS, REGRESS_WITH_FLOOR)

# of each kind in turn for development, validation and test
PROBLEMS = {
    "rounded-mlp": classify(FASHION_14, 64, 400, BFloat16, mlp, (196, 96, 10)),
    "rounded-vit": classify(MNIST_14, 64, 150, BFloat16, Vit, 1, 14, 7, 32, 4, 2),
    "rounded-cnn": classify(
        FASHION_14, 64, 200, BFloat16, plain_cnn, (1, 12, 24), (5, 3)
    ),
    "contrast-fm7": _contrast(FASHION_7, 128, 300, mlp, (49, 96, 24)),
    "contrast-m7": _contrast(MNIST_7, 96, 300, mlp, (49, 64, 64, 16), nn.GELU),
    "contrast-cnn-m14": _contrast(MNIST_14, 96, 200, strided_cnn, (1, 12, 24, 32)),
    "noise-mlp-40": classify(
        mislabelled(MNIST_7, 0.4, 4000), 64, 800, mlp, (49, 128, 10)
    ),
    "noise-cnn-30": classify(
        mislabelled(FASHION_14, 0.3, 4000), 64, 600, paper_cnn, 1, (16, 32, 32)
    ),
    "noise-vit-50": classify(
        mislabelled(MNIST_14, 0.5, 6000), 64, 500, Vit, 1, 14, 7, 48, 3, 1
    ),
    "clip-gru-200": _clipped(CODE_0, 16, 200, CharacterRnn, nn.GRU, VOCABULARY, 32, 64),
    "clip-columns-300": _clipped_regression(
        unscaled_regression(16, 2.0, 25), 64, 300, mlp, (16, 64, 64, 1), nn.GELU
    ),
    "clip-lstm-150": _clipped(MNIST_14, 32, 150, RowRnn, nn.LSTM, 14, 64),
}
