"""All problems by name, in lists for development, validation and test.

A name has the network, the data (m: MNIST, fm: FashionMNIST, c: CIFAR-10, text) and the
side of the images. Horizons are chosen so that a run takes some seconds of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from meta_train.problems import situations
from meta_train.problems.common import (
    CIFAR,
    CIFAR_16,
    FASHION,
    FASHION_14,
    GRAY_16,
    MNIST,
    MNIST_7,
    MNIST_14,
    Build,
    classify,
)
from meta_train.problems.families import family_of_cnns
from meta_train.problems.images import (
    brightest_pixels,
    diffused_images,
    lower_brightness,
    noisy_images,
    picture,
    picture_slopes,
    pixels,
)
from meta_train.problems.networks.convolutional import (
    UNet,
    convolutional_autoencoder,
    depthwise_cnn,
    group_norm,
    paper_cnn,
    plain_cnn,
    pooled_cnn,
    residual_cnn,
    strided_cnn,
    wave_cnn,
)
from meta_train.problems.networks.dense import (
    BagOfTrigrams,
    MixtureOfExperts,
    PointSet,
    ResidualDenoiser,
    Siren,
    SirenSlopes,
    VariationalAutoencoder,
    autoencoder,
    mlp,
)
from meta_train.problems.networks.sequential import (
    CharacterRnn,
    Gpt,
    LinearTransformer,
    Mixer,
    RowRnn,
    VisionTransformer,
)
from meta_train.problems.objectives import (
    CONTRAST,
    PREDICT_QUANTILES,
    RECONSTRUCT,
    VARIATIONAL,
)
from meta_train.problems.protocol import by_name
from meta_train.problems.supervised import REGRESS, SupervisedProblem
from meta_train.problems.text import (
    FILES,
    VOCABULARY,
    files_of_windows,
    next_characters,
)


def _predict_characters(
    name: str, length: int, build: Build, batch_size: int, steps: int
) -> SupervisedProblem:
    data = partial(next_characters, length)
    return classify(name, data, build, batch_size, steps)


DEEP_MLP = partial(mlp, (196, *[48] * 8, 10), nn.Tanh)
WIDE_MLP = partial(mlp, (196, 256, 10), nn.GELU)
GROUP_NORM_CNN = partial(strided_cnn, (3, 16, 32, 64), group_norm, nn.ReLU)
DEPTHWISE_CNN = partial(depthwise_cnn, (1, 16, 32, 64))
FASHION_VIT = partial(VisionTransformer, 1, 28, 7, 32, 4, 2)
GPT = partial(Gpt, VOCABULARY, 64, 48, 4, 2)
LSTM = partial(CharacterRnn, nn.LSTM, VOCABULARY, 24, 64)
AUTOENCODER = partial(autoencoder, (784, 128, 64, 16), (1, 28, 28))
SIREN_SLOPES = partial(SirenSlopes, (2, 28, 28, 1))
SLOPES = partial(picture_slopes, 23)
PIXELS_MNIST = partial(pixels, "mnist")

_DEVELOPMENT = by_name(
    [
        classify("fm-16", FASHION, partial(paper_cnn, 1, (16, 32, 32)), 128, 1000),
        classify("fm-8", FASHION, partial(paper_cnn, 1, (8, 16, 16)), 128, 1000),
        classify("mlp-fm28", FASHION, partial(mlp, (784, 128, 64, 10)), 64, 1000),
        classify("mlp-deep-m14", MNIST_14, DEEP_MLP, 128, 1500),
        classify("mlp-small-m7", MNIST_7, partial(mlp, (49, 32, 10)), 32, 3000),
        classify("mlp-wide-fm14", FASHION_14, WIDE_MLP, 8, 2000),
        classify("cnn-m14", MNIST_14, partial(pooled_cnn, (1, 8, 16), 3), 512, 200),
        classify("cnn-gn-c16", CIFAR_16, GROUP_NORM_CNN, 64, 800),
        classify("depthwise-fm14", FASHION_14, DEPTHWISE_CNN, 64, 600),
        classify(
            "resnet-c16", CIFAR_16, partial(residual_cnn, 3, (12, 24, 32)), 64, 400
        ),
        classify("vit-fm28", FASHION, FASHION_VIT, 64, 600),
        _predict_characters("gpt-text", 64, GPT, 16, 600),
        classify("gru-fm28", FASHION, partial(RowRnn, nn.GRU, 28, 48), 64, 500),
        _predict_characters("lstm-text", 48, LSTM, 16, 600),
        SupervisedProblem(
            "autoencoder-m28", PIXELS_MNIST, AUTOENCODER, RECONSTRUCT, 128, 1000
        ),
        SupervisedProblem("siren-slopes", SLOPES, SIREN_SLOPES, REGRESS, None, 1000),
        classify("mixer-c16", CIFAR_16, partial(Mixer, 3, 16, 4, 48, 2), 64, 600),
    ]
)

NORM_MLP = partial(mlp, (256, 96, 96, 96, 10), nn.GELU, nn.LayerNorm)
BATCH_NORM_CNN = partial(strided_cnn, (1, 12, 24, 48), nn.BatchNorm2d, nn.SiLU)
GROUP_NORM_RESNET = partial(residual_cnn, 1, (16, 32), group_norm)
CIFAR_VIT = partial(VisionTransformer, 3, 16, 4, 48, 6, 3)
TIED_GPT = partial(Gpt, VOCABULARY, 32, 64, 2, 1, tied=True)
GRU = partial(CharacterRnn, nn.GRU, VOCABULARY, 32, 48, 2)
CNN_AUTOENCODER = partial(convolutional_autoencoder, (8, 16), 16)
PIXELS_FASHION = partial(pixels, "fashion-mnist")
PICTURE = partial(picture, 11, gray=False)
SIREN = partial(Siren, (2, 64, 64, 3))

_META_VALIDATION = by_name(
    [
        classify("mlp-norm-c16", GRAY_16, NORM_MLP, 256, 600),
        classify("cnn-bn-fm28", FASHION, BATCH_NORM_CNN, 32, 800),
        classify("resnet-gn-fm14", FASHION_14, GROUP_NORM_RESNET, 64, 300),
        classify("vit-c16", CIFAR_16, CIFAR_VIT, 32, 600),
        _predict_characters("gpt-tied-text", 32, TIED_GPT, 64, 500),
        _predict_characters("gru-text", 64, GRU, 8, 600),
        SupervisedProblem(
            "autoencoder-conv-fm28",
            PIXELS_FASHION,
            CNN_AUTOENCODER,
            RECONSTRUCT,
            batch_size=64,
            steps=500,
        ),
        SupervisedProblem("siren-rgb", PICTURE, SIREN, REGRESS, None, 1000),
    ]
)

POINTS = partial(brightest_pixels, "mnist", 2, 48)
WAVE_CNN = partial(wave_cnn, (1, 16, 24, 32))
NOISY_CIFAR = partial(noisy_images, "cifar10", 2, gray=True)
PIXELS_MNIST_14 = partial(pixels, "mnist", 2)
VAE = partial(VariationalAutoencoder, 196, 96, 8)
EXPERTS = partial(MixtureOfExperts, 256, 4, 64, 10)
TEXT_FILES = partial(files_of_windows, 128)
TRIGRAMS = partial(BagOfTrigrams, 1024, 32, 64, len(FILES))
LINEAR_TRANSFORMER = partial(LinearTransformer, 1, 28, 4, 32, 2, 2)
EMBEDDING_MLP = partial(mlp, (196, 128, 64, 16))
BRIGHTNESS = partial(lower_brightness, "fashion-mnist")
QUANTILE_MLP = partial(mlp, (28, 64, 64, 3))
DIFFUSED = partial(diffused_images, "mnist", 2)
DENOISER = partial(ResidualDenoiser, 196, 96, 2)
LONG_GPT = partial(Gpt, VOCABULARY, 96, 48, 4, 3)

_META_TEST = by_name(
    [
        # families that are in neither of the lists above
        classify("points-m14", POINTS, partial(PointSet, 3, 48, 10), 64, 800),
        classify("wave-fm14", FASHION_14, WAVE_CNN, 64, 800),
        SupervisedProblem("unet-c16", NOISY_CIFAR, partial(UNet, 8), REGRESS, 32, 500),
        SupervisedProblem("vae-m14", PIXELS_MNIST_14, VAE, VARIATIONAL, 64, 1000),
        classify("experts-c16", GRAY_16, EXPERTS, 64, 800),
        classify("trigrams-text", TEXT_FILES, TRIGRAMS, 64, 800),
        classify("linear-attention-m28", MNIST, LINEAR_TRANSFORMER, 32, 600),
        SupervisedProblem(
            "contrast-fm14", FASHION_14, EMBEDDING_MLP, CONTRAST, 128, 1000
        ),
        SupervisedProblem(
            "quantiles-fm28", BRIGHTNESS, QUANTILE_MLP, PREDICT_QUANTILES, 32, 2000
        ),
        SupervisedProblem("diffusion-m14", DIFFUSED, DENOISER, REGRESS, 128, 1000),
        # known families with other sizes and data
        _predict_characters("gpt-long-text", 96, LONG_GPT, 8, 500),
        classify("resnet-c32", CIFAR, partial(residual_cnn, 3, (8, 16, 32)), 32, 400),
        classify("lstm-m28", MNIST, partial(RowRnn, nn.LSTM, 28, 64), 100, 500),
    ]
)

_C10_32 = classify("c10-32", CIFAR, partial(paper_cnn, 3, (32, 64, 64)), 128, 1000)


def _beyond(
    name: str, channels: Sequence[int], kernel: int, batch_size: int, steps: int
) -> SupervisedProblem:
    build = partial(plain_cnn, (1, *channels), [kernel] * len(channels))
    return classify(f"fm-16-{name}", FASHION, build, batch_size, steps)


_BEYOND_THE_PAPER = by_name(
    [
        _beyond("2000-steps", (16, 32, 32), 3, 128, 2000),
        _beyond("5000-steps", (16, 32, 32), 3, 128, 5000),
        _beyond("twice-as-wide", (32, 64, 64), 3, 128, 1000),
        _beyond("four-times-as-wide", (64, 128, 128), 3, 128, 1000),
        _beyond("two-layers-deeper", (16, 32, 32, 32, 32), 3, 128, 1000),
        _beyond("batch-32", (16, 32, 32), 3, 32, 1000),
        _beyond("batch-512", (16, 32, 32), 3, 512, 1000),
        _beyond("kernel-5", (16, 32, 32), 5, 128, 1000),
        classify("fm-mlp", FASHION, partial(mlp, (784, 64, 64, 10)), 128, 1000),
    ]
)

PROBLEMS = {
    **_DEVELOPMENT,
    **_META_VALIDATION,
    **_META_TEST,
    _C10_32.name: _C10_32,
    **_BEYOND_THE_PAPER,
}

# For meta-training only: a family in which each seed is another network, and a wide
# network on few pixels. The wide one is as fast as fm-16, and covers wider networks.
_FM14_32 = classify(
    "fm14-32", FASHION_14, partial(paper_cnn, 1, (32, 64, 64)), 128, 1000
)
META_TRAINING = {
    "fm-cnns": family_of_cnns("fm-cnns", PROBLEMS["fm-16"]),
    "fm14-32": _FM14_32,
}

# for choosing hyperparameters and weights of learned optimizers
DEVELOPMENT = tuple(_DEVELOPMENT)
# for deciding between the chosen ones
META_VALIDATION = tuple(_META_VALIDATION)
# measured once, at the end; nothing is chosen on them
META_TEST = tuple(_META_TEST)
# Kofinas et al. 2024, Table 2; nothing is chosen on the second
PAPER = ("fm-16", "c10-32")
# fm-16 with other sizes and horizons; nothing is chosen on them
BEYOND_THE_PAPER = tuple(_BEYOND_THE_PAPER)
LISTS = {
    "development": DEVELOPMENT,
    "meta-validation": META_VALIDATION,
    "meta-test": META_TEST,
    "paper": PAPER,
    "beyond": BEYOND_THE_PAPER,
    "situations": situations.DEVELOPING,
    "situations-validation": situations.VALIDATING,
    "situations-test": situations.TESTING,
    "situations-real": situations.REAL,
}
