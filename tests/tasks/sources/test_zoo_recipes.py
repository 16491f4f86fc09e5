from dataclasses import replace
from random import Random

import pytest
import torch
import torch.nn.functional as F

from harness.image_datasets import Split, batch_indices
from tasks.networks.architectures import architecture_of, make_module
from tasks.networks.cnn import cnn_description
from tasks.sources.zoo_recipes import (
    FRACTIONS,
    INITS,
    OPTIMIZERS,
    WILD_ACTIVATIONS,
    ZOOS,
    TrainingRecipe,
    accuracy,
    initialise,
    train,
)


def runs(name, count):
    return [ZOOS[name].sample_recipe(Random(seed)) for seed in range(count)]


@pytest.mark.parametrize("name", ZOOS)
def test_settings_of_runs_cover_their_ranges(name):
    recipes = runs(name, 400)
    assert {run.optimizer for run in recipes} == set(OPTIMIZERS)
    assert {run.fraction for run in recipes} == set(FRACTIONS)
    low, high = ZOOS[name].lr
    middle = (low * high) ** 0.5
    assert all(low <= run.lr <= high for run in recipes)
    assert 0.4 < sum(run.lr < middle for run in recipes) / 400 < 0.6
    assert 0.4 < sum(run.dropout == 0 for run in recipes) / 400 < 0.6


def test_networks_of_the_small_zoo_have_one_shape():
    recipes = runs("small", 50)
    assert {run.init for run in recipes} == set(INITS)
    assert {run.architecture["activations"][0] for run in recipes} == {"relu", "tanh"}
    modules = [make_module(run.architecture) for run in recipes]
    assert {sum(p.numel() for p in m.parameters()) for m in modules} == {4970}


def test_networks_of_the_wild_park_have_many_shapes():
    architectures = [run.architecture for run in runs("wild-park", 300)]
    assert {len(a["kernels"]) for a in architectures} == {2, 3, 4, 5}
    widths = {width for a in architectures for width in a["channels"][1:]}
    assert widths == {4, 8, 16, 32}
    assert {kernel for a in architectures for kernel in a["kernels"]} == {3, 5, 7}
    activations = {name for a in architectures for name in a["activations"]}
    assert activations == set(WILD_ACTIVATIONS)
    ends = {
        (source, layer)
        for a in architectures
        for layer, source in enumerate(a["skips"])
        if source is not None
    }
    assert ends == {(0, 2), (0, 3), (1, 3), (0, 4), (1, 4), (2, 4)}


def test_networks_of_the_diverse_zoo_are_of_five_families():
    architectures = [run.architecture for run in runs("diverse", 100)]
    cnns = [a for a in architectures if a["kind"] == "cnn"]
    assert {a["kind"] for a in architectures} == {"cnn", "deep-sets", "vit"}
    assert {a["norm"] for a in cnns} == {None, "batch", "group"}
    assert {a["dimensions"] for a in cnns} == {1, 2}
    assert any(source is not None for a in cnns for source in a["skips"])


@pytest.mark.parametrize("name", ZOOS)
def test_every_network_has_a_graph_in_which_each_group_has_neurons(name):
    for run in runs(name, 8):
        architecture = architecture_of(run.architecture)
        module = architecture.module
        assert not architecture.graph.unplaced
        inputs = torch.rand(2, *module.example_input().shape[1:])
        with torch.no_grad():
            activations = module.group_activations(inputs)
        for group, value in zip(architecture.graph.groups, activations, strict=True):
            assert value is None or value.shape[1] == group.size


RUN = TrainingRecipe(
    architecture=cnn_description([1, 4], [5], [4], ["tanh"]),
    optimizer="sgd",
    init="he",
    init_std=0.1,
    lr=0.05,
    l2=0.01,
    dropout=0.0,
    fraction=0.5,
)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60, 1, 32, 32), generator=generator).byte()
    return Split(pixels, torch.randint(10, (60,), generator=generator), (0.5,), (0.25,))


def test_training_is_sgd_with_momentum_by_hand(images):
    torch.manual_seed(3)
    checkpoints = train(RUN, images, images, [1, 3], batch_size=8, seed=5)
    torch.manual_seed(3)
    model = make_module(RUN.architecture)
    initialise(model, RUN)
    buffers = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(3):
        # half of the images
        pixels, labels = images.batch(batch_indices(30, 8, seed=5, step=step))
        loss = F.cross_entropy(model(pixels), labels)
        grads = torch.autograd.grad(loss, tuple(model.parameters()))
        with torch.no_grad():
            for p, grad, buffer in zip(model.parameters(), grads, buffers, strict=True):
                buffer.mul_(0.9).add_(grad + 0.01 * p)
                p.sub_(0.05 * buffer)
    assert [checkpoint.step for checkpoint in checkpoints] == [1, 3]
    for name, p in model.named_parameters():
        torch.testing.assert_close(checkpoints[-1].params[name], p.detach())
    first, last = (checkpoint.params["fc.weight"] for checkpoint in checkpoints)
    assert not torch.equal(first, last)


def test_accuracy_is_the_share_of_right_labels(images):
    torch.manual_seed(0)
    model = make_module(RUN.architecture, dropout=0.4)
    pixels, labels = images.batch(torch.arange(60))
    model.eval()
    predicted = torch.stack([model(pixel[None]).argmax() for pixel in pixels])
    right = int((predicted == labels).sum())
    model.train()
    assert accuracy(model, images) == right / 60
    assert model.training


def test_a_run_that_diverges_has_no_networks(images):
    run = replace(RUN, lr=1e30)
    assert train(run, images, images, [4], batch_size=8, seed=0) is None


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_other_optimizers_raise_the_accuracy_on_training_images(images, optimizer):
    run = replace(RUN, optimizer=optimizer, lr=0.01, l2=0.0, fraction=1.0)
    torch.manual_seed(0)
    checkpoints = train(run, images, images, [1, 200], batch_size=30, seed=0)
    assert checkpoints[1].accuracy > checkpoints[0].accuracy + 0.2


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("he", (2 / 25) ** 0.5),
        ("glorot", (2 / (25 + 25 * 1999)) ** 0.5),
        ("normal", 0.3),
    ],
)
def test_weights_have_the_spread_of_their_init_and_biases_are_zero(init, expected):
    torch.manual_seed(0)
    # 5 x 5 kernels: a fan of 25 in, and 25 n out
    model = make_module(cnn_description([1, 1999], [5], [4], ["relu"]))
    initialise(model, replace(RUN, init=init, init_std=0.3))
    weight = model.layers[0].weight
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    assert not model.layers[0].bias.any()
    assert not model.fc.bias.any()


def test_orthogonal_weights_have_orthonormal_rows():
    model = make_module(RUN.architecture)
    initialise(model, replace(RUN, init="orthogonal"))
    rows = model.layers[0].weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-5, rtol=0)
