"""All problems by name, in lists for development, validation and test.

A name has the network, the data (m: MNIST, fm: FashionMNIST, c: CIFAR-10, text) and the
side of the images. Horizons are chosen so that a run takes some seconds of one core.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from harness.random import seeded
from meta_train.problems import exact, ladders, situations, velo
from meta_train.problems.images import (
    CIFAR,
    CIFAR_16,
    FASHION,
    FASHION_7,
    FASHION_14,
    GRAY_16,
    MNIST,
    MNIST_7,
    MNIST_14,
    brightest_pixels,
    diffused,
    images,
    lower_brightness,
    noisy,
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
    Vit,
)
from meta_train.problems.protocol import Problem
from meta_train.problems.supervised import (
    CLASSIFY,
    CONTRAST,
    PREDICT_QUANTILES,
    RECONSTRUCT,
    VARIATIONAL,
    Batch,
    SupervisedProblem,
    classify,
    maker,
    named,
    regress,
)
from meta_train.problems.text import (
    TEXT_32,
    TEXT_48,
    TEXT_64,
    TEXT_96,
    VOCABULARY,
    files_of_windows,
)

KERNELS = 3, 3, 3, 3, 5, 1


class CnnFamily(SupervisedProblem):
    """A random `plain_cnn` on FashionMNIST with a random batch size for every seed.

    It has two to four convolutions with 6 to 32 channels (log-uniform). Two thirds of
    the kernels are 3x3, the others 5x5 or 1x1. Images have 28 or 14 pixels a side,
    batches 32 to 256 images. Evaluation has the data of the fields.
    """

    def init(self, seed: int) -> nn.Module:
        return self.sampled(seed).init(seed)

    def batch(self, seed: int, step: int) -> Batch:
        return self.sampled(seed).batch(seed, step)

    def sampled(self, seed: int) -> SupervisedProblem:
        """The problem of a seed."""
        with seeded(seed, 7):
            depth = 2 + _choice(3)
            widths = [
                round(6 * (32 / 6) ** torch.rand(()).item()) for _ in range(depth)
            ]
            kernels = [KERNELS[_choice(6)] for _ in range(depth)]
            batch_size = 32 << _choice(4)
            pool = 1 + _choice(2)
        return SupervisedProblem(
            partial(images, "fashion-mnist", pool),
            partial(plain_cnn, (1, *widths), kernels),
            batch_size,
            self.steps,
            self.objective,
            name=f"cnn-{seed}",
        )


def _choice(count: int) -> int:
    return int(torch.randint(count, ()).item())


reconstruct = maker(SupervisedProblem, RECONSTRUCT)
encode = maker(SupervisedProblem, VARIATIONAL)
contrast = maker(SupervisedProblem, CONTRAST)
predict_quantiles = maker(SupervisedProblem, PREDICT_QUANTILES)


# Arguments: data, batch size (None: all examples), steps, network and its arguments.

# for choosing hyperparameters and weights of learned optimizers
_DEVELOPMENT = {
    "fm-16": classify(FASHION, 128, 1000, paper_cnn, 1, (16, 32, 32)),
    "fm-8": classify(FASHION, 128, 1000, paper_cnn, 1, (8, 16, 16)),
    "mlp-fm28": classify(FASHION, 64, 1000, mlp, (784, 128, 64, 10)),
    "mlp-deep-m14": classify(MNIST_14, 128, 1500, mlp, (196, *[48] * 8, 10), nn.Tanh),
    "mlp-small-m7": classify(MNIST_7, 32, 3000, mlp, (49, 32, 10)),
    "mlp-wide-fm14": classify(FASHION_14, 8, 2000, mlp, (196, 256, 10), nn.GELU),
    "cnn-m14": classify(MNIST_14, 512, 200, pooled_cnn, (1, 8, 16), 3),
    "cnn-gn-c16": classify(CIFAR_16, 64, 800, strided_cnn, (3, 16, 32, 64)),
    "depthwise-fm14": classify(FASHION_14, 64, 600, depthwise_cnn, (1, 16, 32, 64)),
    "resnet-c16": classify(CIFAR_16, 64, 400, residual_cnn, 3, (12, 24, 32)),
    "vit-fm28": classify(FASHION, 64, 600, Vit, 1, 28, 7, 32, 4, 2),
    "gpt-text": classify(TEXT_64, 16, 600, Gpt, VOCABULARY, 64, 48, 4, 2),
    "gru-fm28": classify(FASHION, 64, 500, RowRnn, nn.GRU, 28, 48),
    "lstm-text": classify(TEXT_48, 16, 600, CharacterRnn, nn.LSTM, VOCABULARY, 24, 64),
    "autoencoder-m28": reconstruct(
        lambda: pixels("mnist"), 128, 1000, autoencoder, (784, 128, 64, 16), (1, 28, 28)
    ),
    "siren-slopes": regress(
        partial(picture_slopes, "cifar10", 23), None, 1000, SirenSlopes, (2, 28, 28, 1)
    ),
    "mixer-c16": classify(CIFAR_16, 64, 600, Mixer, 3, 16, 4, 48, 2),
}

# for deciding between the chosen ones
_META_VALIDATION = {
    "mlp-norm-c16": classify(
        GRAY_16, 256, 600, mlp, (256, 96, 96, 96, 10), nn.GELU, nn.LayerNorm
    ),
    "cnn-bn-fm28": classify(
        FASHION, 32, 800, strided_cnn, (1, 12, 24, 48), nn.BatchNorm2d, nn.SiLU
    ),
    "resnet-gn-fm14": classify(
        FASHION_14, 64, 300, residual_cnn, 1, (16, 32), group_norm
    ),
    "vit-c16": classify(CIFAR_16, 32, 600, Vit, 3, 16, 4, 48, 6, 3),
    "gpt-tied-text": classify(
        TEXT_32, 64, 500, Gpt, VOCABULARY, 32, 64, 2, 1, tied=True
    ),
    "gru-text": classify(TEXT_64, 8, 600, CharacterRnn, nn.GRU, VOCABULARY, 32, 48, 2),
    "autoencoder-conv-fm28": reconstruct(
        lambda: pixels("fashion-mnist"), 64, 500, convolutional_autoencoder, (8, 16), 16
    ),
    "siren-rgb": regress(
        partial(picture, "cifar10", first=11), None, 1000, Siren, (2, 64, 64, 3)
    ),
}

# Measured once, at the end; nothing is chosen on them. The first ten are of families
# that are in neither of the lists above, the others have other sizes and data.
_META_TEST = {
    "points-m14": classify(
        brightest_pixels(MNIST_14, 48), 64, 800, PointSet, 3, 48, 10
    ),
    "wave-fm14": classify(FASHION_14, 64, 800, wave_cnn, (1, 16, 24, 32)),
    "unet-c16": regress(noisy(GRAY_16), 32, 500, UNet, 8),
    "vae-m14": encode(
        lambda: pixels("mnist", 2), 64, 1000, VariationalAutoencoder, 196, 96, 8
    ),
    "experts-c16": classify(GRAY_16, 64, 800, MixtureOfExperts, 256, 4, 64, 10),
    "trigrams-text": classify(
        lambda: files_of_windows(128), 64, 800, BagOfTrigrams, 1024, 32, 64, 31
    ),
    "linear-attention-m28": classify(
        MNIST, 32, 600, LinearTransformer, 1, 28, 4, 32, 2, 2
    ),
    "contrast-fm14": contrast(FASHION_14, 128, 1000, mlp, (196, 128, 64, 16)),
    "quantiles-fm28": predict_quantiles(
        lower_brightness(FASHION_7), 32, 2000, mlp, (28, 64, 64, 3)
    ),
    "diffusion-m14": regress(
        diffused(MNIST_14), 128, 1000, ResidualDenoiser, 196, 96, 2
    ),
    "gpt-long-text": classify(TEXT_96, 8, 500, Gpt, VOCABULARY, 96, 48, 4, 3),
    "resnet-c32": classify(CIFAR, 32, 400, residual_cnn, 3, (8, 16, 32)),
    "lstm-m28": classify(MNIST, 100, 500, RowRnn, nn.LSTM, 28, 64),
}

# Kofinas et al. 2024, Table 2, beside fm-16; nothing is chosen on it
_PAPER = {"c10-32": classify(CIFAR, 128, 1000, paper_cnn, 3, (32, 64, 64))}

# fm-16 with other sizes and horizons; nothing is chosen on them
_like_fm_16 = partial(replace, _DEVELOPMENT["fm-16"])
_BEYOND_THE_PAPER = {
    "fm-16-2000-steps": _like_fm_16(steps=2000),
    "fm-16-5000-steps": _like_fm_16(steps=5000),
    "fm-16-twice-as-wide": _like_fm_16(build=lambda: paper_cnn(1, (32, 64, 64))),
    "fm-16-four-times-as-wide": _like_fm_16(build=lambda: paper_cnn(1, (64, 128, 128))),
    "fm-16-two-layers-deeper": _like_fm_16(
        build=lambda: plain_cnn((1, 16, 32, 32, 32, 32), (3, 3, 3, 3, 3))
    ),
    "fm-16-batch-32": _like_fm_16(batch_size=32),
    "fm-16-batch-512": _like_fm_16(batch_size=512),
    "fm-16-kernel-5": _like_fm_16(build=lambda: plain_cnn((1, 16, 32, 32), (5, 5, 5))),
    "fm-mlp": _like_fm_16(build=lambda: mlp((784, 64, 64, 10))),
}

# For meta-training only: a family in which each seed is another network, and a wide
# network on few pixels. The wide one is as fast as fm-16, and covers wider networks.
_META_TRAINING = {
    "fm-cnns": CnnFamily(
        FASHION, lambda: paper_cnn(1, (16, 32, 32)), 128, 1000, CLASSIFY
    ),
    "fm14-32": classify(FASHION_14, 128, 1000, paper_cnn, 1, (32, 64, 64)),
}

PROBLEMS: dict[str, Problem] = named(
    {
        **_DEVELOPMENT,
        **_META_VALIDATION,
        **_META_TEST,
        **_PAPER,
        **_BEYOND_THE_PAPER,
        **_META_TRAINING,
        **exact.EXACT,
        **ladders.LADDERS,
        **velo.VELO,
        **situations.SITUATIONS,
    }
)
LISTS = {
    "development": tuple(_DEVELOPMENT),
    "meta-validation": tuple(_META_VALIDATION),
    "meta-test": tuple(_META_TEST),
    "paper": ("fm-16", *_PAPER),
    "beyond": tuple(_BEYOND_THE_PAPER),
    "exact": tuple(exact.EXACT),
    "ladders": tuple(ladders.LADDERS),
    "velo": tuple(velo.VELO),
    "situations": situations.DEVELOPING,
    "situations-validation": situations.VALIDATING,
    "situations-test": situations.TESTING,
    "situations-real": situations.REAL,
    "meta-training": tuple(_META_TRAINING),
}
