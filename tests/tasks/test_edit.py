import json
import shutil
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
    ],
)
def test_invalid_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_more_outputs_than_an_evaluation_batch(config, monkeypatch):
    monkeypatch.setattr(edit, "EVALUATION_BATCH", 1)
    assert Editing(config(outputs=2)).score() < 0


@torch.no_grad()
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_published_networks_are_compared_with_their_renderings(
    config, tmp_path, monkeypatch, channels, side
):
    monkeypatch.setattr(published_inrs, "NFN_HELD_OUT", {"validation": 4, "test": 4})
    source, folder = tmp_path / "source", tmp_path / "published"
    write_nfn(source, count=12, widths=(2, 8, 8, channels))
    convert(PublishedConfig("nfn", str(source), str(folder)))
    task = Editing(replace(config(), data=str(folder)))
    rendered = images_of(task.data["test"].stack, (side, side)).clamp(0, 1)
    assert rendered.shape == (4, channels, side, side)
    assert torch.equal(task.targets["test"], dilated(rendered))


def test_networks_of_another_program_are_refused(config, data, tmp_path):
    folder = tmp_path / "inr"
    shutil.copytree(data / "inr-mnist", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"]["program"] = "tasks.zoo train"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    message = "inr': expected networks of tasks.inr fit; got those of tasks.zoo train"
    with pytest.raises(ValueError, match=message):
        Editing(replace(config(), data=str(folder)))


def test_numbers_of_missing_images_are_refused(config, monkeypatch):
    data = edit.load_dataset("mnist")
    few = replace(data.test, images=data.test.images[:5])
    few_images = data._replace(test=few)
    monkeypatch.setattr(edit, "load_dataset", lambda name: few_images)
    with pytest.raises(ValueError, match="index: expected 0 to 4; got 5"):
        Editing(config())
