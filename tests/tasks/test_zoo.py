from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from harness.image_datasets import ImageDataset, Split
from tasks import zoo
from tasks.networks.architectures import NetworkStack
from tasks.shards import SPLITS, read_manifest, read_split, shard_paths
from tasks.zoo import (
    ShowConfig,
    TrainConfig,
    checkpoint_steps,
    counts,
    gray,
    show,
    train_all,
)
from tests.tasks.stacks import assert_missing_shard_is_made_again


def striped_images(count):
    """Stripes of ten directions, which are the labels; uint8, in colour."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    angles = labels * torch.pi / 10
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    axes = torch.cos(angles)[:, None, None], torch.sin(angles)[:, None, None]
    waves = axes[0] * rows + axes[1] * columns
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    pixels = 127 + 80 * waves.sin()[:, None] + 20 * noise
    return Split(pixels.clamp(0, 255).byte(), labels, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def config(tmp_path, monkeypatch):
    split = striped_images(400)
    monkeypatch.setattr(
        zoo, "load_dataset", lambda name: ImageDataset(split, split, split)
    )
    sizes = {"runs": 5, "steps": 6, "batch_size": 20, "checkpoints": 2, "shard": 2}
    return TrainConfig(str(tmp_path / "zoo"), **sizes)


def test_splits_are_of_runs():
    assert counts(10) == {"train": 7, "validation": 1, "test": 2}
    assert counts(1000) == {"train": 700, "validation": 100, "test": 200}
    assert counts(3) == {"train": 1, "validation": 1, "test": 1}


def test_checkpoints_are_closer_together_at_first():
    assert checkpoint_steps(1000, 5) == [40, 160, 360, 640, 1000]
    assert checkpoint_steps(3, 5) == [1, 2, 3]


def test_gray_is_the_mean_of_the_colours():
    images = torch.tensor([10, 20, 33]).byte().view(1, 3, 1, 1)
    split = gray(Split(images, torch.zeros(1), (0.0,) * 3, (1.0,) * 3))
    assert split.images.tolist() == [[[[21]]]]
    assert len(split.mean) == len(split.std) == 1


def test_every_run_has_its_networks_in_one_split(config, capsys):
    train_all(config)
    folder = Path(config.folder)
    assert [path.name for path in shard_paths(folder)] == [
        "test-00000.safetensors",
        "train-00000.safetensors",
        "train-00001.safetensors",
        "validation-00000.safetensors",
    ]
    rows = []
    for networks in read_split(folder, "train"):
        columns = networks.columns
        rows += zip(columns["run"].tolist(), columns["step"].tolist(), strict=True)
    assert sorted(rows) == [(run, step) for run in range(3) for step in (2, 6)]
    assert "10 networks in" in capsys.readouterr().out
    assert {"accuracy", "file", "networks"} == set(read_manifest(folder)["shards"][0])


def test_stored_accuracies_equal_those_of_the_networks(config):
    config = replace(config, zoo="wild-park", steps=60)
    train_all(config)
    images, labels = gray(striped_images(400)).batch(torch.arange(400))
    best = 0.0
    for split in SPLITS:
        for networks in read_split(Path(config.folder), split):
            stack = NetworkStack.from_networks(networks)
            outputs = stack.architecture.outputs(stack.params, images)
            measured = (outputs.argmax(2) == labels).float().mean(1)
            stored = networks.columns["accuracy"]
            torch.testing.assert_close(measured, stored, rtol=0, atol=0.01)
            best = max(best, measured.max().item())
    assert best > 0.3


@pytest.mark.parametrize("name", ["small", "diverse"])
def test_missing_shards_are_made_as_they_would_have_been(config, name):
    config = replace(config, zoo=name)
    train_all(config)
    kept, missing = "train-00000.safetensors", "train-00001.safetensors"
    make = partial(train_all, config)
    assert_missing_shard_is_made_again(make, config.folder, kept, missing)
    with pytest.raises(ValueError, match="made with other settings: steps 6, got 7"):
        train_all(replace(config, steps=7))


def test_a_run_that_diverges_is_drawn_anew(config, monkeypatch):
    runs = []

    def diverges_at_first(run, *others):
        runs.append(run)
        return None if len(runs) < 3 else ["network"]

    monkeypatch.setattr(zoo, "train", diverges_at_first)
    assert zoo.trained(config, zoo.load_images(config), 0, 7) == (runs[2], ["network"])
    assert len({run.lr for run in runs}) == 3


def test_pictures(config, tmp_path, capsys):
    train_all(config)
    output = tmp_path / "zoo.png"
    show(ShowConfig(config.folder, str(output)))
    assert output.stat().st_size > 3000
    assert "10 networks of zoo small, accuracies 0." in capsys.readouterr().out


def test_invalid_settings_and_folders_are_refused(config):
    with pytest.raises(ValueError, match="runs: expected 3 or more; got 2"):
        replace(config, runs=2)
    with pytest.raises(ValueError, match="^folder .*: expected a folder of networks"):
        show(ShowConfig(config.folder))
