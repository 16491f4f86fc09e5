from functools import partial

import pytest
import torch

from harness.image_datasets import ImageDataset, Split
from meta_train.problems import images as module

CACHED = (
    module.pooled_splits,
    module.images,
    module.pixels,
    module.picture,
    module.picture_slopes,
)


@pytest.fixture
def install(monkeypatch):
    """Puts a split in place of all of the real data sets."""

    def install(split):
        data = ImageDataset(split, split, split)
        monkeypatch.setattr(module, "load_dataset", lambda name: data)
        for cached in CACHED:
            cached.cache_clear()

    yield install
    for cached in CACHED:
        cached.cache_clear()


@pytest.fixture
def small(install):
    """A data set of eight 4x4 images with two channels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 2, 4, 4), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.arange(8), (0.2, 0.4), (0.5, 0.3))
    install(split)
    return split


def test_pooled_gray_images_by_hand(small):
    images, labels = module.images("s", 2, gray=True).train.batch(torch.tensor([3]))
    square = small.images[3, :, 2:, :2].float()  # lower left, both channels
    expected = (square.mean().round() / 255 - 0.3) / 0.4
    assert images.shape == (1, 1, 2, 2)
    assert images[0, 0, 1, 0] == pytest.approx(
        expected.item(), abs=0.5 / 255 / 0.4 + 1e-6
    )
    assert labels.tolist() == [3]


def test_images_without_options_are_those_of_the_data_set(small):
    indices = torch.tensor([1, 5])
    images, _ = module.images("s").train.batch(indices)
    assert torch.equal(images, small.batch(indices)[0])


def test_pixels_are_between_zero_and_one_and_equal_the_targets(small):
    inputs, targets = module.pixels("s").train.batch(torch.tensor([2]))
    assert torch.equal(inputs, small.images[2:3] / 255)
    assert targets is inputs


def test_the_denoisers_target_is_the_image_without_noise(small):
    indices = torch.arange(8)
    noisy, clean = module.noisy(partial(module.images, "s"))().train.batch(indices)
    assert torch.equal(clean, small.batch(indices)[0])
    assert (noisy - clean).std().item() == pytest.approx(module.NOISE, rel=0.2)


def test_points_are_positions_and_values_of_the_brightest_pixels(small):
    small.images[0, 0, 1, 2] = 255
    small.images[:, 1] = 0
    data = module.brightest_pixels(partial(module.images, "s"), 1)
    points, _ = data().train.batch(torch.tensor([0]))
    channel = (255 / 255 - 0.2) / 0.5
    assert points[0, 0].tolist() == pytest.approx([-1 / 3, 1 / 3, channel])


def test_slopes_are_differences_of_neighbours(install):
    rows = torch.arange(32, dtype=torch.uint8)[:, None]
    image = (2 * rows + torch.arange(32, dtype=torch.uint8)).expand(1, 3, 32, 32)
    install(Split(image, torch.zeros(1), (0.0,) * 3, (1.0,) * 3))
    slopes = (
        module.picture_slopes("s", 0).train.batch(torch.arange(1024))[1].view(32, 32, 2)
    )
    inside = slopes[1:-1, 1:-1] * 127.5
    torch.testing.assert_close(
        inside, torch.tensor([4.0, 2.0]).expand_as(inside), atol=1e-4, rtol=0
    )
