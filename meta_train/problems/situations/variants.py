"""Changes of problems: clipped gradients, wrong labels, contrasts, bfloat16."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from meta_train.problems.situations.problems import (
    classify,
    regress,
    supervised_by_batch,
)
from meta_train.problems.supervised import (
    Batch,
    Build,
    Examples,
    Objective,
    Splits,
    SupervisedProblem,
    contrastive_loss,
    first,
    neighbour_accuracy,
)

MAX_NORM = 1.0


class ClippedProblem(SupervisedProblem):
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
        products = []
        for p, g in zip(params, grads, strict=True):
            products.append((factor * g * p).sum())
        linear = torch.stack(products).sum()
        return loss.detach() + (linear - linear.detach())


classify_clipped = partial(classify, kind=ClippedProblem)
regress_clipped = partial(regress, kind=ClippedProblem)


@dataclass(frozen=True)
class Mislabelled:
    """Examples of which some have a fixed random label.

    labels: (len(examples),) int64, the random labels; -1 keeps the right label.
    """

    examples: Examples
    labels: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Tensor) -> Batch:
        inputs, targets = self.examples.batch(indices)
        wrong = self.labels[indices]
        return inputs, torch.where(wrong < 0, targets, wrong)


@cache
def mislabelled(data: Callable[[], Splits], share: float, limit: int) -> Splits:
    """Splits with `limit` training examples, a share of them with random labels."""
    train, validation, test = first(data, limit)
    generator = torch.Generator().manual_seed(round(1000 * share) + limit)
    labels = torch.randint(10, (limit,), generator=generator)
    is_right = torch.rand(limit, generator=generator) >= share
    wrong = Mislabelled(train, labels.masked_fill(is_right, -1))
    return Splits(wrong, validation, test)


def contrastive_divergence(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The supervised contrastive loss minus its minimum, ().

    It is the mean Kullback-Leibler divergence between the uniform distribution over the
    examples with the same label and the softmax of the similarities.
    """
    alike = (labels[:, None] == labels).sum(1) - 1
    has_others = alike > 0
    counted = has_others.sum().clamp(min=1)
    minimum = alike[has_others].log().sum() / counted
    return contrastive_loss(embeddings, labels) - minimum


DIVERGENCE = Objective(contrastive_divergence, neighbour_accuracy)
contrast = partial(supervised_by_batch, objective=DIVERGENCE)


class BFloat16(nn.Module):
    """A network with bfloat16 parameters and float32 inputs and outputs."""

    def __init__(self, build: Build):
        super().__init__()
        self.model = build().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16()).float()
