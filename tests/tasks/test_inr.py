from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from harness.image_datasets import ImageDataset, Split
from tasks import inr
from tasks.inr import FitConfig, ShowConfig, fit, fit_all, show
from tasks.networks.architectures import NetworkStack
from tasks.networks.siren import pixel_grid, render
from tasks.shards import column_of, read_manifest, read_shard, read_split, shard_paths
from tasks.sources import signals
from tests.tasks.stacks import assert_missing_shard_is_made_again, contents_of


def smooth_images(count, side=6):
    """Waves of random directions, uint8."""
    generator = torch.Generator().manual_seed(0)
    angles = (pixel_grid(side, side) @ torch.randn(2, count, generator=generator)).T
    return (127 * (1 + angles.sin())).to(torch.uint8).view(count, 1, side, side)


@pytest.fixture
def config(tmp_path, monkeypatch):
    split = Split(smooth_images(7), torch.arange(7) % 3, (0.0,), (1.0,))
    monkeypatch.setattr(
        signals, "load_dataset", lambda name: ImageDataset(split, split, split)
    )
    monkeypatch.setattr(inr, "FITS_AT_ONCE", 2)
    options = {"views": 2, "width": 8, "steps": 30, "shard": 3}
    return FitConfig(str(tmp_path / "inr"), train=5, validation=2, test=2, **options)


def test_fitted_networks_render_the_images():
    images = smooth_images(3).float() / 255
    torch.manual_seed(0)
    points = pixel_grid(6, 6)
    values = images.flatten(2) - 0.5
    params, psnr = fit(points, values, (2, 16, 16, 1), steps=200, lr=3e-3)
    rendered = render(list(params.values()), points).view_as(images) + 0.5
    mse = (rendered - images).square().mean((1, 2, 3))
    torch.testing.assert_close(psnr, -10 * mse.log10(), rtol=1e-3, atol=0)
    assert psnr.min() > 40


def test_fits_of_one_call_are_independent():
    points = pixel_grid(6, 6)
    values = smooth_images(3).float().flatten(2) / 255
    torch.manual_seed(0)
    together, _ = fit(points, values, (2, 4, 1), 10, 3e-3)
    torch.manual_seed(0)
    alone, _ = fit(points, values[:1], (2, 4, 1), 10, 3e-3)
    for name, value in together.items():
        torch.testing.assert_close(value[:1], alone[name])


def test_every_image_has_its_views(config, capsys):
    fit_all(config)
    folder = Path(config.folder)
    assert [path.name for path in shard_paths(folder)] == [
        "test-00000.safetensors",
        *(f"train-0000{number}.safetensors" for number in range(4)),
        "validation-00000.safetensors",
    ]
    groups = list(read_split(folder, "train"))
    assert column_of(groups, "index").tolist() == [0, 1, 2, 3, 4] * 2
    assert column_of(groups, "view").tolist() == [0] * 5 + [1] * 5
    assert column_of(groups, "label").tolist() == [0, 1, 2, 0, 1] * 2
    first = groups[0].params["layers.0.weight"][0]
    again = groups[1].params["layers.0.weight"][2]
    assert not torch.allclose(first, again, atol=0.01)  # views of one image
    assert groups[0].architecture == {"kind": "siren", "widths": [2, 8, 8, 1]}
    assert "14 networks in" in capsys.readouterr().out
    assert len(read_manifest(folder)["shards"]) == 6


def test_missing_shards_are_made_as_they_would_have_been(config):
    fit_all(config)
    kept, missing = "train-00000.safetensors", "train-00002.safetensors"
    make = partial(fit_all, config)
    assert_missing_shard_is_made_again(make, config.folder, kept, missing)
    with pytest.raises(ValueError, match="made with other settings: steps 30, got 31"):
        fit_all(replace(config, steps=31))


def test_pictures(config, tmp_path, capsys):
    fit_all(config)
    output = tmp_path / "some.png"
    show(ShowConfig(config.folder, str(output), count=3))
    assert output.stat().st_size > 3000
    assert "3 signals and their networks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"validation": 8}, "validation: expected at most 7 images; got 8"),
        ({"steps": 0}, "steps: expected 1 or more; got 0"),
        ({"data": "foo"}, "data: expected one of .*'sines'; got 'foo'"),
    ],
)
def test_invalid_settings_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        fit_all(replace(config, **changes))


def test_a_missing_folder_is_refused(config):
    with pytest.raises(ValueError, match="^folder .*: expected a folder of networks"):
        show(ShowConfig(config.folder))


def test_a_shard_is_read_back(config, capsys):
    fit_all(config)
    (networks,) = read_shard(Path(config.folder) / "test-00000.safetensors")
    images = smooth_images(7)[:2].float() / 255
    params = NetworkStack.from_networks(networks).params
    rendered = render(params, pixel_grid(6, 6)).view_as(images) + 0.5
    mse = (rendered - images).square().mean((1, 2, 3))
    psnr = networks.columns["psnr"]
    torch.testing.assert_close(psnr, -10 * mse.log10(), rtol=1e-4, atol=1e-3)


SMALL = {"data": "sines", "validation": 1, "test": 1, "width": 8, "steps": 2}


def test_sine_waves_have_the_amplitudes_and_frequencies_of_their_columns(tmp_path):
    config = FitConfig(str(tmp_path), train=3, **SMALL)
    data = inr.load(config)["train"]
    index = torch.tensor([2, 0])
    columns = data.columns(index)
    t = data.points.squeeze(1)[100]
    waves = torch.sin(columns["frequency"] * torch.pi * t)
    expected = columns["amplitude"] / 10 * waves
    torch.testing.assert_close(data.values(index)[:, 0, 100], expected)
    fit_all(config)
    (networks,) = read_split(Path(config.folder), "train")
    assert networks.architecture["widths"] == [1, 8, 8, 1]
    assert torch.equal(networks.columns["frequency"][index], columns["frequency"])
    show(ShowConfig(config.folder, str(tmp_path / "waves.png"), count=2))
    assert (tmp_path / "waves.png").stat().st_size > 3000


def test_a_damaged_shard_is_fitted_again(tmp_path):
    config = FitConfig(str(tmp_path), train=2, shard=1, **SMALL)
    fit_all(config)
    path = tmp_path / "train-00000.safetensors"
    before = contents_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    shown = ShowConfig(str(tmp_path), str(tmp_path / "waves.png"), count=1)
    with pytest.raises(ValueError, match="train-00000.safetensors'.*Run the command"):
        show(shown)
    fit_all(config)
    assert contents_of(tmp_path) == before
