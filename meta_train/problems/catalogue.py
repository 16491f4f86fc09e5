"""All problems by name, in lists that say what each may be used for.

Names: family, data (m: MNIST, fm: FashionMNIST, c: CIFAR-10, text), side of the images.
A horizon makes a run take some seconds of one core (README: how many).
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
    CharacterReader,
    Gpt,
    LinearTransformer,
    Mixer,
    RowReader,
    VisionTransformer,
)
from meta_train.problems.objectives import (
    CONTRAST,
    PREDICT_QUANTILES,
    RECONSTRUCT,
    VARIATIONAL,
)
from meta_train.problems.supervised import (
    REGRESS,
    SupervisedProblem,
)
from meta_train.problems.text import (
    FILES,
    VOCABULARY,
    files_of_windows,
    next_characters,
)

group_normed = partial(strided_cnn, norm=group_norm, activation=nn.ReLU)
batch_normed = partial(strided_cnn, norm=nn.BatchNorm2d, activation=nn.SiLU)


def _language(
    name: str,
    length: int,
    build: Build,
    batch_size: int,
    steps: int,
) -> SupervisedProblem:
    data = partial(next_characters, length)
    return classify(name, data, build, batch_size, steps)


_DEVELOPMENT = (
    classify("fm-16", FASHION, partial(paper_cnn, 1, (16, 32, 32)), 128, 1000),
    classify("fm-8", FASHION, partial(paper_cnn, 1, (8, 16, 16)), 128, 1000),
    classify("mlp-fm28", FASHION, partial(mlp, (784, 128, 64, 10)), 64, 1000),
    classify(
        "mlp-deep-m14",
        MNIST_14,
        partial(mlp, (196, *[48] * 8, 10), nn.Tanh),
        128,
        1500,
    ),
    classify("mlp-small-m7", MNIST_7, partial(mlp, (49, 32, 10)), 32, 3000),
    classify(
        "mlp-wide-fm14",
        FASHION_14,
        partial(mlp, (196, 256, 10), nn.GELU),
        8,
        2000,
    ),
    classify("cnn-m14", MNIST_14, partial(pooled_cnn, (1, 8, 16), 3), 512, 200),
    classify("cnn-gn-c16", CIFAR_16, partial(group_normed, (3, 16, 32, 64)), 64, 800),
    classify(
        "depthwise-fm14",
        FASHION_14,
        partial(depthwise_cnn, (1, 16, 32, 64)),
        64,
        600,
    ),
    classify("resnet-c16", CIFAR_16, partial(residual_cnn, 3, (12, 24, 32)), 64, 400),
    classify(
        "vit-fm28",
        FASHION,
        partial(VisionTransformer, 1, 28, 7, 32, 4, 2),
        64,
        600,
    ),
    _language("gpt-text", 64, partial(Gpt, VOCABULARY, 64, 48, 4, 2), 16, 600),
    classify("gru-fm28", FASHION, partial(RowReader, nn.GRU, 28, 48), 64, 500),
    _language(
        "lstm-text",
        48,
        partial(CharacterReader, nn.LSTM, VOCABULARY, 24, 64),
        16,
        600,
    ),
    SupervisedProblem(
        "autoencoder-m28",
        partial(pixels, "mnist"),
        partial(autoencoder, (784, 128, 64, 16), (1, 28, 28)),
        RECONSTRUCT,
        128,
        1000,
    ),
    SupervisedProblem(
        "siren-slopes",
        partial(picture_slopes, 23),
        partial(SirenSlopes, (2, 28, 28, 1)),
        REGRESS,
        None,
        1000,
    ),
    classify("mixer-c16", CIFAR_16, partial(Mixer, 3, 16, 4, 48, 2), 64, 600),
)

_META_VALIDATION = (
    classify(
        "mlp-norm-c16",
        GRAY_16,
        partial(mlp, (256, 96, 96, 96, 10), nn.GELU, nn.LayerNorm),
        256,
        600,
    ),
    classify("cnn-bn-fm28", FASHION, partial(batch_normed, (1, 12, 24, 48)), 32, 800),
    classify(
        "resnet-gn-fm14",
        FASHION_14,
        partial(residual_cnn, 1, (16, 32), group_norm),
        64,
        300,
    ),
    classify(
        "vit-c16",
        CIFAR_16,
        partial(VisionTransformer, 3, 16, 4, 48, 6, 3),
        32,
        600,
    ),
    _language(
        "gpt-tied-text",
        32,
        partial(Gpt, VOCABULARY, 32, 64, 2, 1, tied=True),
        64,
        500,
    ),
    _language(
        "gru-text",
        64,
        partial(CharacterReader, nn.GRU, VOCABULARY, 32, 48, 2),
        8,
        600,
    ),
    SupervisedProblem(
        "autoencoder-conv-fm28",
        partial(pixels, "fashion-mnist"),
        partial(convolutional_autoencoder, (8, 16), 16),
        RECONSTRUCT,
        64,
        500,
    ),
    SupervisedProblem(
        "siren-rgb",
        partial(picture, 11, gray=False),
        partial(Siren, (2, 64, 64, 3)),
        REGRESS,
        None,
        1000,
    ),
)

_META_TEST = (
    # families that are in neither of the lists above
    classify(
        "points-m14",
        partial(brightest_pixels, "mnist", 2, 48),
        partial(PointSet, 3, 48, 10),
        64,
        800,
    ),
    classify("wave-fm14", FASHION_14, partial(wave_cnn, (1, 16, 24, 32)), 64, 800),
    SupervisedProblem(
        "unet-c16",
        partial(noisy_images, "cifar10", 2, gray=True),
        partial(UNet, 8),
        REGRESS,
        32,
        500,
    ),
    SupervisedProblem(
        "vae-m14",
        partial(pixels, "mnist", 2),
        partial(VariationalAutoencoder, 196, 96, 8),
        VARIATIONAL,
        64,
        1000,
    ),
    classify(
        "experts-c16",
        GRAY_16,
        partial(MixtureOfExperts, 256, 4, 64, 10),
        64,
        800,
    ),
    classify(
        "trigrams-text",
        partial(files_of_windows, 128),
        partial(BagOfTrigrams, 1024, 32, 64, len(FILES)),
        64,
        800,
    ),
    classify(
        "linear-attention-m28",
        MNIST,
        partial(LinearTransformer, 1, 28, 4, 32, 2, 2),
        32,
        600,
    ),
    SupervisedProblem(
        "contrast-fm14",
        FASHION_14,
        partial(mlp, (196, 128, 64, 16)),
        CONTRAST,
        128,
        1000,
    ),
    SupervisedProblem(
        "quantiles-fm28",
        partial(lower_brightness, "fashion-mnist"),
        partial(mlp, (28, 64, 64, 3)),
        PREDICT_QUANTILES,
        32,
        2000,
    ),
    SupervisedProblem(
        "diffusion-m14",
        partial(diffused_images, "mnist", 2),
        partial(ResidualDenoiser, 196, 96, 2),
        REGRESS,
        128,
        1000,
    ),
    # other sizes and data of known families
    _language("gpt-long-text", 96, partial(Gpt, VOCABULARY, 96, 48, 4, 3), 8, 500),
    classify("resnet-c32", CIFAR, partial(residual_cnn, 3, (8, 16, 32)), 32, 400),
    classify("lstm-m28", MNIST, partial(RowReader, nn.LSTM, 28, 64), 100, 500),
)

_ONLY_OF_THE_PAPER = (
    classify("c10-32", CIFAR, partial(paper_cnn, 3, (32, 64, 64)), 128, 1000),
)


def _beyond(
    name: str, channels: Sequence[int], kernel: int, batch_size: int, steps: int
) -> SupervisedProblem:
    build = partial(plain_cnn, (1, *channels), [kernel] * len(channels))
    return classify(f"fm-16-{name}", FASHION, build, batch_size, steps)


_BEYOND_THE_PAPER = (
    _beyond("2000-steps", (16, 32, 32), 3, 128, 2000),
    _beyond("5000-steps", (16, 32, 32), 3, 128, 5000),
    _beyond("twice-as-wide", (32, 64, 64), 3, 128, 1000),
    _beyond("four-times-as-wide", (64, 128, 128), 3, 128, 1000),
    _beyond("two-layers-deeper", (16, 32, 32, 32, 32), 3, 128, 1000),
    _beyond("batch-32", (16, 32, 32), 3, 32, 1000),
    _beyond("batch-512", (16, 32, 32), 3, 512, 1000),
    _beyond("kernel-5", (16, 32, 32), 5, 128, 1000),
    classify("fm-mlp", FASHION, partial(mlp, (784, 64, 64, 10)), 128, 1000),
)

PROBLEMS = {
    problem.name: problem
    for problems in (
        _DEVELOPMENT,
        _META_VALIDATION,
        _META_TEST,
        _ONLY_OF_THE_PAPER,
        _BEYOND_THE_PAPER,
    )
    for problem in problems
}

# For meta-training alone: a family, of which each seed is a network of its own, and a
# wide network on few pixels, which is as fast as fm-16 and shows what becomes of step
# sizes in wider networks.
META_TRAINING = {
    "fm-cnns": family_of_cnns("fm-cnns", PROBLEMS["fm-16"]),
    "fm14-32": classify(
        "fm14-32", FASHION_14, partial(paper_cnn, 1, (32, 64, 64)), 128, 1000
    ),
}

# On these, numbers and weights of learned optimizers are chosen.
DEVELOPMENT = tuple(problem.name for problem in _DEVELOPMENT)
# These decide between what was chosen.
META_VALIDATION = tuple(problem.name for problem in _META_VALIDATION)
# These are measured once, at the end; no learned optimizer is chosen by them.
META_TEST = tuple(problem.name for problem in _META_TEST)
# Kofinas et al. 2024, Table 2; the second takes no part in choosing anything either.
PAPER = ("fm-16", "c10-32")
# The first one otherwise: how far the paper's optimizers reach. These choose nothing.
BEYOND_THE_PAPER = tuple(problem.name for problem in _BEYOND_THE_PAPER)
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
