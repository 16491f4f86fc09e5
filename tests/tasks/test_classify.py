import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tasks.classify import Classification, Config
from tasks.learning.task import run_task
from tasks.learning.training import TrainingConfig
from tasks.shards import read_shard, write_shard


@pytest.fixture
def config(data, tmp_path, clock):
    training = TrainingConfig(minutes=0.1, batch=16, validations=2)
    sizes = {"width": 8, "layers": 1}
    return Config(
        str(data / "inr-mnist"), str(tmp_path), sizes=sizes, training=training
    )


def test_a_training_says_and_writes_what_it_found(config, tmp_path, capsys):
    run_task(replace(config, probes=4), Classification)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["test"]["accuracy"] * 16 == round(found["test"]["accuracy"] * 16)
    assert found["config"]["probes"] == 4
    assert (tmp_path / "probes.png").stat().st_size > 1000
    assert len(found["validation"]) == 2
    assert found["steps"] == 8  # six seconds, and two that are not counted
    said = capsys.readouterr().out
    assert f"ng-gnn: accuracy {found['test']['accuracy']:.4g} on test data" in said


def test_accuracy_is_the_share_of_classes_that_are_right(config):
    task = Classification(config)
    labels = task.data["validation"].labels

    class Oracle(torch.nn.Module):
        """Right on the first four networks, one class too high on the others."""

        def forward(self, stack):
            wrong = torch.arange(len(labels)) >= 4
            return torch.nn.functional.one_hot((labels + wrong) % 10, 10).float()

    task.model = Oracle()
    assert task.score() == 4 / 16


@torch.no_grad()
def test_with_symmetry_networks_of_the_same_function_are_the_same(config):
    for symmetry in (True, False):
        task = Classification(replace(config, symmetry=symmetry))
        task.model.eval()
        stack = task.data["test"].stack
        other = stack.canonical()
        said = [task.model(task.prepared(one)) for one in (stack, other)]
        assert torch.allclose(*said, atol=1e-4) == symmetry


def test_fewer_networks_are_the_first(config):
    whole = Classification(config)
    some = Classification(replace(config, limit=20))
    assert torch.equal(some.data["train"].labels, whole.data["train"].labels[:20])
    assert len(some.data["test"].labels) == len(whole.data["test"].labels)


@pytest.mark.parametrize("compiled_eagerly", ["aot_eager"], indirect=True)
def test_compiled_steps_are_the_same(config, compiled_eagerly):
    losses = []
    for compiled in (False, True):
        task = Classification(replace(config, compiled=compiled))
        torch.manual_seed(0)
        losses.append([task.loss(step).item() for step in range(3)])
        task.score()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert compiled_eagerly == [1]


def test_settings_that_make_no_sense(config):
    with pytest.raises(ValueError, match="limit: expected 1 or more; got 0"):
        replace(config, limit=0)
    with pytest.raises(ValueError, match="probes: expected 0 or more; got -1"):
        replace(config, probes=-1)


def test_unknown_models_and_sizes_are_named(config):
    with pytest.raises(
        ValueError, match="model 'mamba': expected one of ng-gnn, .*, or module:Class"
    ):
        Classification(replace(config, model="mamba"))
    with pytest.raises(
        ValueError,
        match="GraphModelConfig: expected sizes among width, .*; got depth",
    ):
        Classification(replace(config, sizes={"depth": 3}))
    for odd in (-3, 1.5):
        with pytest.raises(
            ValueError, match=f"sizes: layers: .*whole number .*; got {odd}"
        ):
            Classification(replace(config, sizes={"layers": odd}))


def test_networks_of_another_kind_are_refused(config, data):
    zoo = str(data / "zoo-small")
    with pytest.raises(ValueError, match="of kind siren; got cnn"):
        Classification(replace(config, data=zoo))


def test_a_damaged_shard_is_left_out_only_on_request(config, data, tmp_path):
    folder = tmp_path / "inr"
    shutil.copytree(data / "inr-mnist", folder)
    (path,) = folder.glob("train-*")
    shutil.copy(path, folder / "train-00001.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    broken = replace(config, data=str(folder))
    with pytest.raises(ValueError, match="train-00000.safetensors': .* SHA-256"):
        Classification(broken)
    assert (
        len(Classification(replace(broken, skip_damaged=True)).data["train"].labels)
        == 48
    )


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


def test_a_model_of_your_own(config, tmp_path):
    own = replace(
        config, model="tests.user_classes:Flat", probes=0, sizes={"dropout": 0.5}
    )
    run_task(own, Classification)
    found = json.loads((Path(own.folder) / "result.json").read_text())
    assert found["config"]["model"] == "tests.user_classes:Flat"
    run_task(own, Classification)  # its checkpoint is read again
    for name, told in (
        (
            "tests.user_classes:Halved",
            "a subclass of tasks.models.base.NetworkModel; got",
        ),
        (
            "tests.user_classes:None_",
            "expected 'None_' in module 'tests.user_classes'; got none",
        ),
        ("nothing", "model 'nothing': expected one of .*, or module:Class"),
    ):
        with pytest.raises(ValueError, match=told):
            Classification(replace(own, model=name))


def test_a_missing_folder_is_named(config):
    told = "folder 'data/nope': expected a folder of networks; got none. tasks.inr fit"
    with pytest.raises(ValueError, match=told):
        Classification(replace(config, data="data/nope"))
