"""Full-batch fits."""

import math

import pytest
import torch

from meta_train.problems import LISTS, load_problem
from meta_train.problems.exact import chirps, circles, collocation, featured
from meta_train.problems.images import picture, pooled_splits
from meta_train.problems.situations.equations import HEAT
from tests.meta_train.small import available


def all_of(splits, split="train"):
    examples = getattr(splits, split)
    return examples.batch(torch.arange(len(examples)))


@pytest.mark.parametrize("name", LISTS["exact"])
def test_every_step_and_seed_has_the_same_batch(name):
    problem = available(name)
    first = problem.batch(0, 0)
    for other in (problem.batch(0, 7), problem.batch(3, 0)):
        for x, y in zip(first, other, strict=True):
            assert torch.equal(x, y)
    for split in problem.data()[1:]:
        assert torch.equal(split.batch(torch.arange(len(split)))[0], first[0])


@pytest.mark.parametrize("name", LISTS["exact"])
def test_evaluation_is_the_training_loss(name):
    if name.startswith("solver"):
        pytest.skip("equations are evaluated on their solution")
    problem = available(name)
    model = problem.init(0)
    loss = problem.loss(model, problem.batch(0, 0)).item()
    metrics = problem.evaluate(model.eval(), "validation")
    assert metrics.loss == pytest.approx(loss, rel=1e-4)


def test_pictures_are_rows_of_images():
    available("siren-c64")
    points, values = all_of(picture("cifar10", count=4))
    assert points.shape == (64 * 64, 2)
    image = (values.view(64, 64, 3) + 1) * 127.5
    second = pooled_splits("cifar10", 1, gray=False)[0].images[1]
    torch.testing.assert_close(image[:32, 32:].permute(2, 0, 1), second.float())


def test_features_are_waves():
    available("features-fm28")
    data = lambda: picture("fashion-mnist", 2)  # noqa: E731
    (inputs, values), (_, same) = all_of(featured(data)()), all_of(data())
    sines, cosines = inputs.chunk(2, 1)
    torch.testing.assert_close(sines**2 + cosines**2, torch.ones(196, 64))
    assert torch.equal(values, same)


def test_chirps_change_their_frequency():
    time, wave = all_of(chirps())
    assert (time[0], time[-1]) == (-10, 10)
    seconds = torch.tensor(100 / 511, dtype=torch.float64)
    expected = 0.0
    for begin, change in ((5, 10), (20, 20), (50, -30)):
        phase = begin * seconds + change * seconds**2 / 2
        expected += math.sin(2 * math.pi * phase) / 3
    assert wave[100].item() == pytest.approx(expected, abs=1e-4)


def test_distances_are_negative_within_circles():
    points, distances = all_of(circles())
    inside = torch.zeros(len(points), dtype=torch.bool)
    for x, y, radius in ((-0.4, -0.3, 0.35), (0.4, 0.2, 0.25), (-0.1, 0.6, 0.2)):
        inside |= (points - torch.tensor([x, y])).norm(dim=1) < radius
    assert torch.equal(distances.squeeze(1) < 0, inside)
    assert 20 < inside.sum() < 200


def test_equations_are_evaluated_on_their_solution():
    points, targets = all_of(collocation(HEAT))
    same, solution = all_of(collocation(HEAT), "validation")
    assert torch.equal(points, same)
    assert not targets.any()
    assert torch.equal(solution, HEAT.solution(points))


def test_frequency_is_of_all_hidden_layers():
    model = load_problem("siren-slow-fm28").init(0)
    points = torch.rand(5, 2)
    x = points
    for layer in model.layers[:-1]:
        x = torch.sin(10 * layer(x))
    torch.testing.assert_close(model(points), model.layers[-1](x))
    # sine neurons keep their scale: weights are uniform within sqrt(6 / 64) / 10
    assert model.layers[1].weight.abs().max().item() == pytest.approx(0.0306, rel=0.02)
