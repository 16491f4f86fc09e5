import json
import shutil
from dataclasses import replace

import pytest
import torch

from tasks.classify import Classification, Config
from tasks.learning.task import run_task
from tasks.learning.training import TrainingConfig
from tasks.shards import read_shard, write_shard
from tests.tasks.conftest import DATA
from tests.tasks.stacks import losses_of


@pytest.fixture
def config(data, tmp_path, clock):
    training = TrainingConfig(minutes=0.1, batch=16, validations=2)
    options = {"sizes": {"width": 8, "layers": 1}, "training": training}
    return Config(str(data / "inr-mnist"), str(tmp_path), **options)


def test_a_run_prints_and_writes_its_results(config, tmp_path, capsys):
    run_task(replace(config, probes=4), Classification)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test"]["accuracy"] * 16 == round(result["test"]["accuracy"] * 16)
    assert result["config"]["probes"] == 4
    assert len(result["validation"]) == 2
    assert result["steps"] == 8  # six seconds, and two that are not counted
    printed = capsys.readouterr().out
    assert f"ng-gnn: accuracy {result['test']['accuracy']:.4g} on test data" in printed


def test_accuracy_is_the_share_of_right_classes(config):
    task = Classification(config)
    labels = task.data["validation"].columns["label"]

    class Oracle(torch.nn.Module):
        """Right on the first four networks, one class too high on the others."""

        def forward(self, stack):
            wrong = torch.arange(len(labels)) >= 4
            return torch.nn.functional.one_hot((labels + wrong) % 10, 10).float()

    task.model = Oracle()
    assert task.score() == 4 / 16


@torch.no_grad()
def test_symmetry_makes_networks_of_one_function_equal(config):
    for symmetry in (True, False):
        task = Classification(replace(config, symmetry=symmetry))
        task.model.eval()
        stack = task.data["test"].stack
        other = stack.canonical()
        logits = [task.model(task.prepared(networks)) for networks in (stack, other)]
        assert torch.allclose(*logits, atol=1e-4) == symmetry


def test_a_limit_keeps_the_first_networks(config):
    data = Classification(config).data
    limited = Classification(replace(config, limit=20)).data
    labels = data["train"].columns["label"]
    assert torch.equal(limited["train"].columns["label"], labels[:20])
    assert limited["test"].stack.count == data["test"].stack.count


@pytest.mark.thorough
@pytest.mark.parametrize("compiled_eagerly", ["aot_eager"], indirect=True)
def test_compiled_steps_are_the_same(config, compiled_eagerly):
    expected = losses_of(Classification(config), steps=3)
    losses = losses_of(Classification(replace(config, compiled=True)), steps=3)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert compiled_eagerly == [1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"limit": 0}, "limit: expected 1 or more; got 0"),
        ({"probes": -1}, "probes: expected 0 or more; got -1"),
        (
            {"model": "mamba"},
            "model 'mamba': expected one of ng-gnn, .*, or module:Class",
        ),
        ({"model": "nothing"}, "model 'nothing': expected one of .*, or module:Class"),
        (
            {"model": "tests.user_classes:Halved"},
            "a subclass of tasks.models.base.NetworkModel; got",
        ),
        (
            {"model": "tests.user_classes:None_"},
            "expected 'None_' in module 'tests.user_classes'; got none",
        ),
        (
            {"sizes": {"depth": 3}},
            "GraphModelConfig: expected sizes among width, .*; got depth",
        ),
        ({"sizes": {"layers": -3}}, "sizes: layers: .*whole number .*; got -3"),
        ({"sizes": {"layers": 1.5}}, "sizes: layers: .*whole number .*; got 1.5"),
        ({"data": str(DATA / "zoo-small")}, "of kind siren; got cnn"),
        (
            {"data": "data/no"},
            "folder 'data/no': expected a folder of networks; got none. tasks.inr fit",
        ),
    ],
)
def test_invalid_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        Classification(replace(config, **changes))


def test_labels_of_no_class_are_refused(config, data, tmp_path):
    folder = tmp_path / "inr"
    shutil.copytree(data / "inr-mnist", folder)
    path = folder / "validation-00000.safetensors"
    (group,) = read_shard(path)
    labels = group.columns["label"] + 10
    columns = {**group.columns, "label": labels}
    write_shard(path, [replace(group, columns=columns)])
    with pytest.raises(ValueError, match="inr': label: expected 0 to 9; got"):
        Classification(replace(config, data=str(folder)))


def test_a_user_model_is_trained(config, tmp_path):
    config = replace(config, model="tests.user_classes:Flat", sizes={"dropout": 0.5})
    run_task(config, Classification)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["config"]["model"] == "tests.user_classes:Flat"
    run_task(config, Classification)  # its checkpoint is read again
