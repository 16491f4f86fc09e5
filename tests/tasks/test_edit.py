import json
from dataclasses import replace

import pytest
import torch

from harness.image_datasets import ImageDataset, Split
from tasks import edit
from tasks.edit import Config, Editing, contrasted, dilated, images_of
from tasks.learning.task import run_task
from tasks.learning.training import TrainingConfig
from tasks.published import PublishedConfig, convert
from tasks.sources import published_inrs
from tests.tasks.sources.published import write_nfn
from tests.tasks.stacks import losses_of


@pytest.fixture
def config(data, tmp_path, clock, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 1, 28, 28), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.zeros(48, dtype=torch.int64), (0.0,), (1.0,))
    monkeypatch.setattr(
        edit, "load_dataset", lambda name: ImageDataset(split, split, split)
    )

    def make(**changes):
        training = TrainingConfig(minutes=0.1, batch=16, validations=2)
        options = {"sizes": {"width": 8, "layers": 2}, "model": "nfn-np", **changes}
        folders = str(data / "inr-mnist"), str(tmp_path)
        return Config(*folders, training=training, **options)

    return make


def test_edits_by_hand():
    rows = [[0.0, 0.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    image = torch.tensor([[rows]])
    expected = [[1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 1.0, 0.0]]
    assert dilated(image)[0, 0].tolist() == expected
    flat = torch.tensor([[[[0.4, 0.6, 0.1, 0.9]]]])
    assert torch.allclose(contrasted(flat), torch.tensor([[[[0.35, 0.65, 0.0, 1.0]]]]))


def test_a_run_writes_errors_and_a_picture(config, tmp_path):
    run_task(config(outputs=2), Editing)
    result = json.loads((tmp_path / "result.json").read_text())["test"]
    assert result["mse"] > 0 and result["mse_unedited"] > 0
    assert (tmp_path / "edited.png").stat().st_size > 1000


@torch.no_grad()
def test_outputs_are_networks_whose_images_are_averaged(config):
    task = Editing(config(outputs=3))
    stack = task.data["test"].stack
    params = task.model(stack)
    each = [
        stack.architecture.outputs([p[:, k] for p in params], task.points)
        for k in range(3)
    ]
    expected = torch.stack(each).mean(0).mT + 0.5
    torch.testing.assert_close(task.render(stack, params, task.points), expected)


@torch.no_grad()
def test_updates_of_zero_render_the_unedited_images(config):
    task = Editing(config())
    task.model.scales.zero_()
    stack, targets = task.data["validation"].stack, task.targets["validation"]
    expected = (images_of(stack, (28, 28)) - targets).square().mean().item()
    assert task.score() == pytest.approx(-expected, rel=1e-4)


@pytest.mark.thorough
def test_compiled_steps_are_the_same(config, compiled_eagerly):
    plain = config(model="ng-gnn", sizes={"width": 8, "layers": 1})
    expected = losses_of(Editing(plain), steps=3)
    losses = losses_of(Editing(replace(plain, compiled=True)), steps=3)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert compiled_eagerly == [1]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"edit": "erode"}, "edit: expected one of dilate, contrast; got 'erode'"),
        ({"outputs": 0}, "outputs: expected 1 or more; got 0"),
        ({"originals": "svhn"}, "originals: expected one of .*; got 'svhn'"),
    ],
)
def test_invalid_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_more_outputs_than_an_evaluation_batch(config, monkeypatch):
    monkeypatch.setattr(edit, "EVALUATION_BATCH", 1)
    assert Editing(config(outputs=2)).score() < 0


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder of NFN's SIRENs, brought from files as their authors write them."""
    monkeypatch.setattr(published_inrs, "NFN_HELD_OUT", {"validation": 4, "test": 4})
    source, folder = tmp_path / "source", tmp_path / "published"
    write_nfn(source, count=24, widths=(2, 8, 8, 1))
    convert(PublishedConfig("nfn", str(source), str(folder)))
    return folder


@torch.no_grad()
def test_published_networks_are_compared_with_their_renderings(config, published):
    task = Editing(replace(config(), data=str(published)))
    assert task.targets["train"].shape == (16, 1, 28, 28)
    rendered = images_of(task.data["test"].stack, (28, 28)).clamp(0, 1)
    assert torch.equal(task.targets["test"], dilated(rendered))


def test_published_networks_are_edited_from_the_command_line(config, published):
    folders = {"data": str(published), "folder": str(published / "run")}
    run_task(replace(config(), **folders), Editing)
    result = json.loads((published / "run" / "result.json").read_text())["test"]
    assert result["mse"] > 0 and result["mse_unedited"] > 0


def test_published_networks_are_numbered_by_all_images_of_a_data_set(config, published):
    data = edit.load_dataset("mnist").train.images.float() / 255
    targets = Editing(replace(config(), data=str(published), originals="mnist")).targets
    assert torch.equal(targets["test"], dilated(data[20:24]))


@pytest.mark.parametrize(
    "changes, originals, message",
    [
        (
            {"format": "dwsnets"},
            "mnist",
            "expected networks of format nfn.*got 'dwsnets'",
        ),
        (
            {"program": "tasks.zoo train"},
            None,
            "of tasks.inr fit or tasks.published; got",
        ),
    ],
)
def test_networks_without_known_images_are_refused(
    config, published, changes, originals, message
):
    path = published / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"] |= changes
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        Editing(replace(config(), data=str(published), originals=originals))


def test_originals_of_another_data_set_are_refused(config):
    with pytest.raises(ValueError, match="originals: expected 'mnist', as in folder"):
        Editing(config(originals="cifar10"))


def test_networks_of_other_channels_than_the_images(config, tmp_path, monkeypatch):
    monkeypatch.setattr(published_inrs, "NFN_HELD_OUT", {"validation": 1, "test": 1})
    write_nfn(tmp_path / "source", count=4, widths=(2, 8, 8, 3))
    folder = str(tmp_path / "published")
    convert(PublishedConfig("nfn", str(tmp_path / "source"), folder))
    published_config = replace(config(), data=folder)
    assert Editing(published_config).targets["test"].shape == (1, 3, 32, 32)
    message = "networks of 1 channels, as images have; got 3"
    with pytest.raises(ValueError, match=message):
        Editing(replace(published_config, originals="mnist"))


def test_numbers_of_missing_images_are_refused(config, monkeypatch):
    data = edit.load_dataset("mnist")
    few = replace(data.test, images=data.test.images[:5])
    few_images = data._replace(test=few)
    monkeypatch.setattr(edit, "load_dataset", lambda name: few_images)
    with pytest.raises(ValueError, match="index: expected 0 to 4; got 5"):
        Editing(config())
