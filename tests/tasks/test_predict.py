import json
from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import pytest
import torch

from tasks.learning.task import run_task
from tasks.learning.training import TrainingConfig
from tasks.networks.network_dataset import NetworkDataset
from tasks.predict import Config, Prediction, is_narrow, r2, tau
from tasks.shards import read_split
from tests.tasks.conftest import DATA
from tests.tasks.stacks import losses_of


@pytest.fixture
def config(data, tmp_path, clock):
    training = TrainingConfig(minutes=0.05, batch=6, validations=1)
    return Config(
        str(data / "zoo-wild-park"), str(tmp_path), model="statnn", training=training
    )


def read_data(folder, split):
    return NetworkDataset.from_groups(read_split(Path(folder), split))


def test_rank_correlation_and_explained_variance_by_hand():
    true = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert tau(torch.tensor([1.0, 3.0, 2.0, 4.0]), true) == pytest.approx((5 - 1) / 6)
    assert tau(torch.zeros(4), true) == 0.0
    assert isnan(tau(torch.full((4,), nan), true))
    assert r2(true, true) == 1.0
    assert r2(torch.full((4,), 0.25), true) == pytest.approx(0.0, abs=1e-6)
    assert r2(true.flip(0), true) == pytest.approx(-3.0, abs=1e-5)


@pytest.mark.parametrize(
    ("zoo", "model", "probes"),
    [
        ("wild-park", "ng-gnn", 2),
        ("diverse", "gmn", 0),
        ("small", "ng-t", 2),
        ("diverse", "dmc", 0),
    ],
)
def test_networks_of_every_zoo_are_read(config, data, tmp_path, zoo, model, probes):
    sizes = {"width": 8, "layers": 1, "scales": 1} if model != "dmc" else {}
    changes = {"model": model, "probes": probes, "sizes": sizes}
    run_task(replace(config, data=str(data / f"zoo-{zoo}"), **changes), Prediction)
    result = json.loads((tmp_path / "result.json").read_text())["test"]
    assert -1 <= result["tau"] <= 1 and result["r2"] <= 1
    assert (tmp_path / "predicted.png").stat().st_size > 1000


def test_narrow_networks_are_trained_and_wide_ones_tested(config, monkeypatch):
    data_set = read_data(config.data, "train")
    monkeypatch.setattr(NetworkDataset, "from_groups", lambda _: data_set)
    task = Prediction(replace(config, widest=16))
    assert all(is_narrow(stack, 16) for stack in task.data["train"].stacks)
    assert not any(is_narrow(stack, 16) for stack in task.data["test"].stacks)
    counts = {split: len(data) for split, data in task.data.items()}
    assert counts == {"train": 2, "validation": 2, "test": len(data_set) - 2}


def test_a_limit_keeps_networks_of_every_architecture(config):
    task = Prediction(replace(config, limit=3))
    data_set = read_data(config.data, "train")
    accuracies = task.data["train"].columns["accuracy"]
    assert torch.equal(accuracies, data_set.subset(3).columns["accuracy"])
    assert len(accuracies) == 3
    assert len(task.data["test"]) == len(read_data(config.data, "test"))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"widest": 1},
            "widest: expected narrow networks in split 'train' .* of 1; got none",
        ),
        (
            {"data": str(DATA / "inr-mnist")},
            "inr-mnist': expected networks with a column 'accuracy'; got none",
        ),
    ],
)
def test_unsuitable_networks_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        Prediction(replace(config, **changes))


@pytest.mark.thorough
def test_only_steps_on_networks_of_one_architecture_are_compiled(
    config, data, monkeypatch, compiled_eagerly
):
    sizes = {"model": "ng-gnn", "sizes": {"width": 4, "layers": 1}}
    training = replace(config.training, batch=2)
    folder = str(data / "zoo-small")
    config = replace(config, data=folder, training=training, **sizes)
    message = "compiled: expected networks of one architecture; got 2"
    with pytest.raises(ValueError, match=message):
        Prediction(replace(config, compiled=True))
    data_set = read_data(config.data, "train")
    one = data_set.filter(lambda stack: stack is data_set.stacks[0])
    monkeypatch.setattr(NetworkDataset, "from_groups", lambda _: one)
    expected = losses_of(Prediction(config), steps=2)
    losses = losses_of(Prediction(replace(config, compiled=True)), steps=2)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert compiled_eagerly == [1]
