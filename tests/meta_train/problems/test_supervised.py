from math import exp, log

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness.image_datasets import batch_indices
from harness.random import derive_seed
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    TEMPERATURE,
    Splits,
    SupervisedProblem,
    contrastive_loss,
    fraction_correct,
    neighbour_accuracy,
    pinball_loss,
    tensor_examples,
    vae_loss,
)

SIZE = 1203  # three evaluation batches, the last of them short


@pytest.fixture
def splits():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SIZE, 4, generator=generator)
    examples = tensor_examples(inputs, inputs.argmax(1))
    return Splits(examples, examples, examples)


def linear_problem(data, batch_size=8):
    return SupervisedProblem(data, lambda: nn.Linear(4, 4), batch_size, 10, CLASSIFY)


def test_evaluation_is_the_mean_over_all_examples(splits):
    problem = linear_problem(lambda: splits)
    model = problem.init(0).eval()
    inputs, labels = splits.test.batch(torch.arange(SIZE))
    loss, accuracy = problem.evaluate(model, "test")
    assert loss == pytest.approx(cross_entropy(model(inputs), labels).item())
    is_right = model(inputs).argmax(1) == labels
    assert accuracy == pytest.approx(is_right.double().mean().item())
    first = problem.evaluate(model, "test", 7)
    expected = cross_entropy(model(inputs[:7]), labels[:7]).item()
    assert first.loss == pytest.approx(expected)


def test_regression_has_no_accuracy(splits):
    doubled = splits.map(lambda inputs, labels: (inputs, 2 * inputs))
    problem = SupervisedProblem(lambda: doubled, nn.Identity, 8, 10, REGRESS)
    inputs = splits.test.batch(torch.arange(SIZE))[0]
    metrics = problem.evaluate(problem.init(0), "validation")
    assert metrics.accuracy is None
    assert metrics.loss == pytest.approx(inputs.square().mean().item(), rel=1e-5)


def test_batches_follow_the_order_of_the_data_set(splits):
    problem = linear_problem(lambda: splits)
    indices = batch_indices(SIZE, 8, seed=derive_seed(5, 1), step=3)
    assert torch.equal(problem.batch(5, 3)[0], splits.train.batch(indices)[0])


def test_a_full_batch_is_everything_in_order(splits):
    problem = linear_problem(lambda: splits, batch_size=None)
    everything = splits.train.batch(torch.arange(SIZE))[0]
    for seed, step in ((0, 0), (1, 7)):
        assert torch.equal(problem.batch(seed, step)[0], everything)


def test_noise_in_examples_is_keyed_by_seed_and_step(splits):
    noisy = splits.map(lambda inputs, labels: (torch.randn(len(inputs)), labels))
    problem = linear_problem(lambda: noisy)
    keys = (0, 0), (0, 1), (1, 0), (0, 0)
    drawn = [tuple(problem.batch(*key)[0].tolist()) for key in keys]
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3


def test_the_fraction_correct_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
    assert fraction_correct(logits, torch.tensor([0, 1, 1, 0])) == 0.75
    positions = torch.stack([logits, -logits], -1)  # (b, classes, positions)
    labels = torch.tensor([[0, 0], [1, 1], [1, 1], [0, 0]])
    assert fraction_correct(positions, labels) == (3 + 1) / 8


def test_the_quantile_loss_by_hand():
    predicted = torch.tensor([[0.0, 1.0, 3.0]])
    # target 2: above the .1 quantile by 2, above the median by 1, below the .9 quantile
    # by 1
    expected = (0.1 * 2 + 0.5 * 1 + 0.1 * 1) / 3
    loss = pinball_loss(predicted, torch.tensor([[2.0]]))
    assert loss.item() == pytest.approx(expected)


def test_the_evidence_bound_by_hand():
    mean, log_variance = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    divergence = 0.5 * (1 + exp(0.5) - 1 - 0.5)
    loss = vae_loss((torch.zeros(1, 4), mean, log_variance), torch.ones(1, 1, 2, 2))
    assert loss.item() == pytest.approx(log(2) + divergence / 4)


def test_the_contrastive_loss_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 0, 1])  # the third has no other of its class: left out
    alike = exp(1 / TEMPERATURE)
    expected = -log(alike / (alike + exp(0.0)))
    loss = contrastive_loss(embeddings, labels)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_nearest_neighbour_is_never_itself():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert neighbour_accuracy(embeddings, torch.tensor([0, 0, 1, 1])) == 1
    assert neighbour_accuracy(embeddings, torch.tensor([0, 1, 0, 1])) == 0
