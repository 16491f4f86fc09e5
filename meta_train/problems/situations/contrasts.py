"""Contrastive learning."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from meta_train.problems.objectives import contrastive_loss, neighbour_accuracy
from meta_train.problems.situations.kinds import read_kinds
from meta_train.problems.situations.problems import supervised_by_batch
from meta_train.problems.supervised import Objective


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
KINDS = read_kinds(__file__, globals())
