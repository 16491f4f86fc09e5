"""Objectives beyond classification and squared errors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from meta_train.problems.supervised import Objective

TEMPERATURE = 0.1  # of the contrastive loss, as in Khosla et al. 2020
QUANTILES = (0.1, 0.5, 0.9)


def vae_loss(outputs: tuple[Tensor, Tensor, Tensor], images: Tensor) -> Tensor:
    """Negative evidence lower bound per pixel (Kingma and Welling 2014, Eq. 10), ()."""
    logits, mean, log_variance = outputs
    error = F.binary_cross_entropy_with_logits(logits, images.flatten(1))
    divergence = mean.square() + log_variance.exp() - 1 - log_variance
    divergence = 0.5 * divergence
    return error + divergence.sum() / images.numel()


def contrastive_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss of a batch (Khosla et al. 2020, Eq. 2), ().

    embeddings: (b, d), of any length; labels: (b,)
    """
    similarity = _cosines(embeddings) / TEMPERATURE
    log_shares = similarity.log_softmax(1)
    alike = (labels[:, None] == labels) & ~_diagonal(labels)
    sums = log_shares.masked_fill(~alike, 0).sum(1)
    counts = alike.sum(1)
    means = sums / counts.clamp(min=1)
    return -means.sum() / (counts > 0).sum().clamp(min=1)


def neighbour_accuracy(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Share of a batch whose nearest other example has the same label, ()."""
    nearest = _cosines(embeddings).argmax(1)
    return (labels[nearest] == labels).float().mean()


def pinball_loss(
    predicted: Tensor, target: Tensor, quantiles: tuple[float, ...] = QUANTILES
) -> Tensor:
    """Mean quantile loss (Koenker and Bassett 1978), ().

    predicted: (b, q), one column for each quantile; target: (b, 1)
    """
    levels = predicted.new_tensor(quantiles)
    error = target - predicted
    above = levels * error
    below = (levels - 1) * error
    return torch.maximum(above, below).mean()


def _cosines(embeddings: Tensor) -> Tensor:
    """Cosine similarities (b, b), with -inf on the diagonal."""
    unit = F.normalize(embeddings, dim=1)
    cosines = unit @ unit.mT
    return cosines.masked_fill(_diagonal(embeddings), -torch.inf)


def _diagonal(rows: Tensor) -> Tensor:
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)


VARIATIONAL = Objective(vae_loss)
CONTRAST = Objective(contrastive_loss, neighbour_accuracy)
PREDICT_QUANTILES = Objective(pinball_loss)
RECONSTRUCT = Objective(F.binary_cross_entropy_with_logits)
