"""Tasks of VeLO: sizes, initial weights and data of their source."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from meta_train.problems import LISTS
from meta_train.problems.velo import BATCH_NORM_2D, ChannelNorm, cnn, images, mlp
from tests.meta_train.small import available

ROOT = Path(__file__).parents[3]
SIZES = {
    "Conv_Cifar10_32x64x64": 56_970,
    "Conv_Cifar10_32x64x64_batchnorm": 57_290,
    "ImageMLPAE_Cifar10_32x32x32_bs128": 201_824,
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": 428_426,
    "ImageMLP_Cifar10_8_Relu32": 6_506,
    "ImageMLP_FashionMnist8_Relu32": 2_410,
}


def test_every_task_has_an_envelope():
    record = json.loads((ROOT / "results/velo/envelopes.json").read_text())
    assert set(record["losses"]) == set(LISTS["velo"])
    assert all(len(x) == len(record["steps"]) for x in record["losses"].values())


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_first_losses(name):
    problem = available(name)
    model = problem.init(0)
    assert sum(p.numel() for p in model.parameters()) == SIZES[name]
    record = json.loads((ROOT / "results/velo/envelopes.json").read_text())
    first = record["losses"][name][0]  # the lowest of many runs
    assert 0.95 * first < problem.loss(model, problem.batch(0, 0)).item() < 1.2 * first


def test_weights_are_truncated_at_two_deviations():
    torch.manual_seed(0)
    first = mlp((400, 50, 10))[1]
    assert isinstance(first, nn.Linear) and not first.bias.any()
    assert first.weight.abs().max() <= 2 * 400**-0.5
    assert first.weight.std().item() == pytest.approx(0.88 * 400**-0.5, rel=0.03)


def test_convolutions_have_the_padding_of_tensorflow():
    """An even size with a stride of 2 is padded behind the last pixel alone."""
    network = cnn(norm=ChannelNorm)
    assert network[:2](torch.zeros(1, 3, 32, 32)).shape == (1, 32, 16, 16)
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 0, 0] = 1
    touched = (network[:2](image) != network[:2](torch.zeros_like(image))).any(1)
    assert touched.sum() == 1


def test_norms():
    x = torch.randn(4, 3, 5, 5)
    channels = ChannelNorm(3)(x)
    torch.testing.assert_close(
        channels.mean(1), torch.zeros(4, 5, 5), atol=1e-6, rtol=0
    )
    batch = BATCH_NORM_2D(3).eval()(x)
    torch.testing.assert_close(batch.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)


def test_splits_and_resized_images():
    available("ImageMLP_Cifar10_8_Relu32")
    splits = images("cifar10", 8)
    assert list(map(len, splits)) == [40_000, 5_000, 10_000]
    small, labels = splits.train.batch(torch.arange(3))
    whole, same = images("cifar10").train.batch(torch.arange(3))
    assert torch.equal(labels, same) and whole.min() >= 0 and whole.max() <= 1
    centre = whole.unfold(2, 4, 4).unfold(3, 4, 4)[..., 1:3, 1:3].mean((-2, -1))
    torch.testing.assert_close(small, centre)
