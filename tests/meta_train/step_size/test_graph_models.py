"""Graph networks that predict step sizes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from meta_train.step_size.dataset import Data
from meta_train.step_size.graph_batches import KERNEL, batch_of, network_of
from meta_train.step_size.graph_fits import (
    VARIANTS,
    Examples,
    Fitter,
    GraphPredictor,
    Settings,
    Sizes,
    fit_all,
)
from meta_train.step_size.graph_inputs import graph_input, input_of
from meta_train.step_size.graph_models import cautious, of_small_networks
from meta_train.step_size.trainings import draw
from ngopt import build_graph
from ngopt.metanets.graph_data.feature_sources import FlatFeatures
from ngopt.metanets.graph_data.graph_tensors import graph_tensors

SMALL = Settings(sizes=Sizes(width=8), epochs=2, batch=8, seeds=1)


def scaled(log_scale, width):
    """A network with weights of 2 ** log_scale times their usual size."""
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    x = torch.randn(16, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0**log_scale)
    grads = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    graphs = build_graph(model.named_parameters()), build_graph(model, x[:2])
    return input_of(graphs, list(model.parameters()), grads)


@pytest.fixture(scope="module")
def examples():
    """Networks for which a multiplier is best that is the inverse of their scale."""
    torch.manual_seed(0)
    count = 32
    best = torch.linspace(-2, 2, count)
    fine = torch.linspace(-3, 3, 25)
    inputs = [scaled(-float(x), 4 + number % 7) for number, x in enumerate(best)]
    others = {"horizon": torch.randn(count, 2), "all": torch.randn(count, 5)}
    curves = -(fine - best[:, None]).square()
    return Examples(inputs, others, fine, curves, torch.arange(count) % 2)


@pytest.mark.parametrize("layer", ["ng-gnn", "ng-t"])
@pytest.mark.parametrize("graph", [0, 1])
def test_states_in_batches_are_those_of_each_network(layer, graph):
    inputs = [graph_input(draw(seed)) for seed in (1, 8)]  # with a convolution
    networks = [network_of(own.graphs[graph], own.columns()) for own in inputs]
    torch.manual_seed(0)
    model = GraphPredictor(4, 1, Sizes(layer, width=8, layers=3)).network
    batch = batch_of(networks, [0, 1])
    (together,), _ = model.states(batch, batch.tensors)
    alone = []
    for own in inputs:
        columns, one = own.columns(), own.graphs[graph]
        tensors = graph_tensors(one, KERNEL, columns)
        alone += model.states(FlatFeatures.finite(columns, one), tensors)[0]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[3]])
def test_learns_a_target_that_depends_on_the_size_of_weights(examples, variant):
    settings = Settings(sizes=Sizes(width=8), rate=1e-2, epochs=30, batch=8)
    fitter = Fitter(examples, examples.batches(variant.graph, 8), variant, settings)
    is_train = examples.folds == 0
    places = fitter.fitted(is_train, 0)[~is_train]
    best = examples.fine[examples.curves[~is_train].argmax(1)]
    error = (places - best).square().mean()
    assert error < 0.1 * best.square().mean()  # of an untrained one, which predicts 0


def test_networks_that_are_left_out_change_nothing(examples):
    batches = examples.batches(0, 8)
    is_train = examples.folds == 0
    expected = Fitter(examples, batches, VARIANTS[0], SMALL).fitted(is_train, 0)
    examples.curves[~is_train] *= -1
    found = Fitter(examples, batches, VARIANTS[0], SMALL).fitted(is_train, 0)
    examples.curves[~is_train] *= -1
    assert torch.equal(found, expected)


def test_without_gradients_none_are_read(examples):
    variant = next(own for own in VARIANTS if not own.has_gradients)
    batches = examples.batches(variant.graph, 8)
    expected = Fitter(examples, batches, variant, SMALL).fitted(examples.folds == 0, 0)
    for batch in batches:
        for features in (*batch.edge_features, *batch.bias_features):
            features[..., 2:] = torch.nan
    found = Fitter(examples, batches, variant, SMALL).fitted(examples.folds == 0, 0)
    assert torch.equal(found, expected)
    assert found.isfinite().all()


def test_fits_resume(examples, tmp_path):
    path = tmp_path / "fits.jsonl"
    found = fit_all(examples, SMALL, path, "cpu")
    lines = path.read_text().splitlines()
    assert len(lines) == 2 * len(VARIANTS)
    record = json.loads(lines[0])
    record["places"] = [0.5] * len(record["places"])
    path.write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    again = fit_all(examples, SMALL, path, "cpu")
    assert path.read_text().splitlines()[1:] == lines[1:]
    name = record["fit"]["variant"]
    is_first = examples.folds == record["fit"]["fold"]
    assert (again[name][0, is_first] == 0.5).all()
    assert torch.equal(again[name][0, ~is_first], found[name][0, ~is_first])
    # with other options none is reused
    fit_all(examples, replace(SMALL, epochs=1), path, "cpu")
    assert len(path.read_text().splitlines()) == 4 * len(VARIANTS)


def test_caution_moves_predictions_towards_zero():
    places = torch.tensor([[1.0, -1.0, 0.5], [3.0, -1.0, -0.5]])
    assert cautious(places).tolist() == [1.5, -1.0, 0.0]


def test_large_networks_can_be_left_out():
    sizes = np.log([[100], [2000], [1000], [1001]])
    seeds = range(4)
    data = Data(
        trainings=[draw(seed) for seed in seeds],
        names=["log elements"],
        x=np.stack([sizes, sizes], 1),
        unnamed=np.zeros((4, 2, 1)),
        gains=np.arange(4.0).reshape(4, 1, 1),
        log_multipliers=np.zeros(1),
        files=np.zeros(4),
    )
    small, expected = of_small_networks(data, 1000), [draw(0), draw(2)]
    assert small.trainings == expected
    assert small.gains.flatten().tolist() == [0.0, 2.0]
    assert small.kinds.tolist() == [training.kind for training in expected]
    assert small.steps.tolist() == [training.steps for training in expected]
    assert small.x.shape == small.unnamed.shape == (2, 2, 1)
    assert len(of_small_networks(data, math.inf).files) == 4
