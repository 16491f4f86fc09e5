"""Fixed tasks of learned_optimization on images, on which VeLO was compared.

Sizes, losses, initial weights and splits are those of
`learned_optimization/tasks/fixed` (google/learned_optimization, Apache-2.0); names are
its names. Metz et al. 2022 compare optimizers there by their training loss. Its two
tasks that are 4,096 and 8,192 wide are left out.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.image_datasets import Split, load_dataset
from meta_train.problems.networks import dense
from meta_train.problems.networks.dense import Layer
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Batch,
    Examples,
    Objective,
    Splits,
    SupervisedProblem,
    classify,
    fraction_correct,
    on_batches,
)

CLASSES = 10
STEPS = 10_000
CONVOLUTIONAL_STEPS = 2_000
TRAIN, VALIDATION = 0.8, 0.9  # ends of the splits, as shares of the training images
PIXELS = {"mnist": 784, "fashion-mnist": 784, "cifar10": 3072}

# As in the source, evaluation, too, normalises by the moments of the batch.
BATCH_NORM_1D = partial(nn.BatchNorm1d, track_running_stats=False)
BATCH_NORM_2D = partial(nn.BatchNorm2d, track_running_stats=False)


@cache
def images(name: str, size: int | None = None) -> Splits:
    """Images with pixels in [0, 1], (b, channels, height, width), and their labels.

    size: of a side, by bilinear interpolation of four pixels.
    """
    given = load_dataset(name)
    pixels = torch.cat([given.train.images, given.validation.images])
    labels = torch.cat([given.train.labels, given.validation.labels])
    ends = [round(share * len(labels)) for share in (TRAIN, VALIDATION)]
    parts = [
        Split(pixels[a:b], labels[a:b], (0.0,), (1.0,)) for a, b in pairwise([0, *ends])
    ]
    parts.append(Split(given.test.images, given.test.labels, (0.0,), (1.0,)))

    def resized(inputs: Tensor, targets: Tensor) -> Batch:
        if size is not None:
            inputs = F.interpolate(inputs, (size, size), mode="bilinear")
        return inputs, targets

    splits = Splits(*(Examples(len(part), part.batch) for part in parts))
    return splits.map(resized)


@on_batches
def reconstructed(inputs: Tensor, labels: Tensor) -> Batch:
    """The same images; the targets are their pixels, (b, pixels)."""
    return inputs, inputs.flatten(1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of (b, channels, height, width) at each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def mlp(
    widths: tuple[int, ...],
    activation: Layer = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
) -> nn.Sequential:
    """An MLP of images; norm, or dropout in its place, is before each activation."""
    return _initialized(dense.mlp(widths, activation, norm))


def autoencoder(pixels: int, hidden: tuple[int, ...]) -> nn.Sequential:
    return mlp((pixels, *hidden, pixels)).append(nn.Sigmoid())


def cnn(
    activation: Layer = nn.ReLU, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """Kernels of 3 x 3 with 32, 64 and 64 channels, the first with a stride of 2, and
    the mean of all pixels; norms are behind the activations."""
    # padding "same" of an even size and a stride of 2
    layers: list[nn.Module] = [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 32, 3, 2)]
    layers += [activation(), *([norm(32)] if norm else [])]
    for n_in in (32, 64):
        layers += [nn.Conv2d(n_in, 64, 3, padding=1), activation()]
        layers += [norm(64)] if norm else []
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)]
    return _initialized(nn.Sequential(*layers))


@torch.no_grad()
def _initialized(network: nn.Sequential) -> nn.Sequential:
    """Haiku's initial weights: normal with deviation fan_in^-.5, truncated at two of
    these, and biases of 0."""
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            deviation = layer.weight[0].numel() ** -0.5
            nn.init.trunc_normal_(
                layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation
            )
            assert layer.bias is not None
            layer.bias.zero_()
    return network


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over examples and classes of the squared distance to one-hot labels, ()."""
    return F.mse_loss(logits, F.one_hot(labels, CLASSES).to(logits.dtype))


SQUARED = Objective(_squared_error, fraction_correct)


def dropout(share: float) -> Callable[[int], nn.Module]:
    """Dropout in place of a norm."""
    return lambda width: nn.Dropout(share)


def _mlp(
    name: str,
    *hidden: int,
    batch_size: int = 128,
    objective: Objective = CLASSIFY,
    **settings,
) -> SupervisedProblem:
    build = partial(mlp, (PIXELS[name], *hidden, CLASSES), **settings)
    data = partial(images, name)
    return SupervisedProblem(data, build, batch_size, STEPS, objective)


def _autoencoder(name: str, *hidden: int, batch_size: int = 128) -> SupervisedProblem:
    data = reconstructed(partial(images, name))
    build = partial(autoencoder, PIXELS[name], hidden)
    return SupervisedProblem(data, build, batch_size, STEPS, REGRESS)


def _cnn(size: int | None = None, **settings) -> SupervisedProblem:
    data = partial(images, "cifar10", size)
    return classify(data, 128, CONVOLUTIONAL_STEPS, cnn, **settings)


THREE = 128, 128, 128
VELO: dict[str, SupervisedProblem] = {
    "Conv_Cifar10_16_32x64x64": _cnn(16),
    "Conv_Cifar10_32x64x64": _cnn(),
    "Conv_Cifar10_32x64x64_Tanh": _cnn(activation=nn.Tanh),
    "Conv_Cifar10_32x64x64_batchnorm": _cnn(norm=BATCH_NORM_2D),
    "Conv_Cifar10_32x64x64_layernorm": _cnn(norm=ChannelNorm),
    "ImageMLPAE_Cifar10_128x32x128_bs256": _autoencoder(
        "cifar10", 128, 32, 128, batch_size=256
    ),
    "ImageMLPAE_Cifar10_256x256x256_bs1024": _autoencoder(
        "cifar10", 256, 256, 256, batch_size=1024
    ),
    "ImageMLPAE_Cifar10_256x256x256_bs128": _autoencoder("cifar10", 256, 256, 256),
    "ImageMLPAE_Cifar10_32x32x32_bs128": _autoencoder("cifar10", 32, 32, 32),
    "ImageMLPAE_FashionMnist_128x32x128_bs128": _autoencoder(
        "fashion-mnist", 128, 32, 128
    ),
    "ImageMLPAE_Mnist_128x32x128_bs128": _autoencoder("mnist", 128, 32, 128),
    "ImageMLP_Cifar10_1024x1024_Relu": _mlp("cifar10", 1024, 1024),
    "ImageMLP_Cifar10_128x128_Dropout02_Relu_MSE": _mlp(
        "cifar10", 128, 128, objective=SQUARED, norm=dropout(0.2)
    ),
    "ImageMLP_Cifar10_128x128_Dropout05_Relu_MSE": _mlp(
        "cifar10", 128, 128, objective=SQUARED, norm=dropout(0.5)
    ),
    "ImageMLP_Cifar10_128x128_Dropout08_Relu_MSE": _mlp(
        "cifar10", 128, 128, objective=SQUARED, norm=dropout(0.8)
    ),
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Relu": _mlp(
        "cifar10", *THREE, norm=BATCH_NORM_1D
    ),
    "ImageMLP_Cifar10_128x128x128_BatchNorm_Tanh": _mlp(
        "cifar10", *THREE, norm=BATCH_NORM_1D, activation=nn.Tanh
    ),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Relu": _mlp(
        "cifar10", *THREE, norm=nn.LayerNorm
    ),
    "ImageMLP_Cifar10_128x128x128_LayerNorm_Tanh": _mlp(
        "cifar10", *THREE, norm=nn.LayerNorm, activation=nn.Tanh
    ),
    "ImageMLP_Cifar10_128x128x128_Relu": _mlp("cifar10", *THREE),
    "ImageMLP_Cifar10_128x128x128_Relu_MSE": _mlp("cifar10", *THREE, objective=SQUARED),
    "ImageMLP_Cifar10_128x128x128_Tanh_bs128": _mlp(
        "cifar10", *THREE, activation=nn.Tanh
    ),
    "ImageMLP_Cifar10_128x128x128_Tanh_bs256": _mlp(
        "cifar10", *THREE, batch_size=256, activation=nn.Tanh
    ),
    "ImageMLP_Cifar10_128x128x128_Tanh_bs64": _mlp(
        "cifar10", *THREE, batch_size=64, activation=nn.Tanh
    ),
    "ImageMLP_Cifar10_256x256_Relu": _mlp("cifar10", 256, 256),
    "ImageMLP_Cifar10_8_Relu32": classify(
        partial(images, "cifar10", 8), 128, STEPS, mlp, (192, 32, CLASSES)
    ),
    "ImageMLP_FashionMnist8_Relu32": classify(
        partial(images, "fashion-mnist", 8), 128, STEPS, mlp, (64, 32, CLASSES)
    ),
    "ImageMLP_FashionMnist_Relu128x128": _mlp("fashion-mnist", 128, 128),
    "ImageMLP_Mnist_128x128x128_Relu": _mlp("mnist", *THREE),
}
