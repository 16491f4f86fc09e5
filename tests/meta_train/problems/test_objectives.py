from math import exp, log

import pytest
import torch

from meta_train.problems.objectives import (
    TEMPERATURE,
    contrastive_loss,
    neighbour_accuracy,
    pinball_loss,
    vae_loss,
)


def test_the_quantile_loss_by_hand():
    predicted = torch.tensor([[0.0, 1.0, 3.0]])
    # target 2: above the .1 quantile by 2, above the median by 1, below the .9 quantile
    # by 1
    expected = (0.1 * 2 + 0.5 * 1 + 0.1 * 1) / 3
    assert pinball_loss(predicted, torch.tensor([[2.0]])).item() == pytest.approx(
        expected
    )


def test_the_evidence_bound_by_hand():
    logits = torch.zeros(1, 4)
    images = torch.ones(1, 1, 2, 2)
    mean = torch.tensor([[1.0]])
    log_variance = torch.tensor([[0.5]])
    divergence = 0.5 * (1 + exp(0.5) - 1 - 0.5)
    loss = vae_loss((logits, mean, log_variance), images)
    assert loss.item() == pytest.approx(log(2) + divergence / 4)


def test_the_contrastive_loss_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 0, 1])  # the third has nobody alike and does not count
    alike = exp(1 / TEMPERATURE)
    other = exp(0.0)
    expected = -log(alike / (alike + other))
    assert contrastive_loss(embeddings, labels).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_the_nearest_neighbour_is_never_itself():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert neighbour_accuracy(embeddings, torch.tensor([0, 0, 1, 1])) == 1
    assert neighbour_accuracy(embeddings, torch.tensor([0, 1, 0, 1])) == 0
