from random import Random

import pytest
import torch

from tasks.networks.architectures import architecture_of, make_module
from tasks.sources.zoo_recipes import (
    FRACTIONS,
    INITS,
    OPTIMIZERS,
    WILD_ACTIVATIONS,
    ZOOS,
)


def runs(name, count):
    return [ZOOS[name].sample_recipe(Random(seed)) for seed in range(count)]


@pytest.mark.parametrize("name", ZOOS)
def test_settings_of_runs_cover_their_ranges(name):
    found = runs(name, 400)
    assert {run.optimizer for run in found} == set(OPTIMIZERS)
    assert {run.fraction for run in found} == set(FRACTIONS)
    low, high = ZOOS[name].lr
    middle = (low * high) ** 0.5
    assert all(low <= run.lr <= high for run in found)
    assert 0.4 < sum(run.lr < middle for run in found) / 400 < 0.6
    assert 0.4 < sum(run.dropout == 0 for run in found) / 400 < 0.6


def test_the_small_zoo_is_of_one_shape():
    found = runs("small", 50)
    assert {run.init for run in found} == set(INITS)
    activations = {run.architecture["activations"][0] for run in found}
    assert activations == {"relu", "tanh"}
    sizes = {
        sum(p.numel() for p in make_module(run.architecture).parameters())
        for run in found
    }
    assert sizes == {4970}


def test_the_wild_park_is_of_every_shape():
    found = [run.architecture for run in runs("wild-park", 300)]
    assert {len(a["kernels"]) for a in found} == {2, 3, 4, 5}
    assert {width for a in found for width in a["channels"][1:]} == {
        4,
        8,
        16,
        32,
    }
    assert {kernel for a in found for kernel in a["kernels"]} == {3, 5, 7}
    assert {name for a in found for name in a["activations"]} == set(WILD_ACTIVATIONS)
    ends = {
        (source, layer)
        for a in found
        for layer, source in enumerate(a["skips"])
        if source is not None
    }
    assert ends == {(0, 2), (0, 3), (1, 3), (0, 4), (1, 4), (2, 4)}


def test_the_diverse_zoo_is_of_five_families():
    found = [run.architecture for run in runs("diverse", 100)]
    cnns = [a for a in found if a["kind"] == "cnn"]
    assert {a["kind"] for a in found} == {"cnn", "deep-sets", "vit"}
    assert {a["norm"] for a in cnns} == {None, "batch", "group"}
    assert {a["dimensions"] for a in cnns} == {1, 2}
    assert any(source is not None for a in cnns for source in a["skips"])


@pytest.mark.parametrize("name", ZOOS)
def test_every_network_has_a_graph_in_which_each_group_has_neurons(name):
    for run in runs(name, 8):
        architecture = architecture_of(run.architecture)
        module = architecture.module
        assert not architecture.graph.unplaced
        with torch.no_grad():
            said = module.group_activations(
                torch.rand(2, *module.example_input().shape[1:])
            )
        for group, value in zip(architecture.graph.groups, said, strict=True):
            assert value is None or value.shape[1] == group.size
