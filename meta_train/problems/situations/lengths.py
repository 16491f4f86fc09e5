"""Very short and very long runs, and batches of one example or of all."""

from torch import nn

from meta_train.problems.images import (
    CIFAR_16,
    FASHION_7,
    FASHION_14,
    MNIST_7,
    MNIST_14,
    lower_brightness,
)
from meta_train.problems.networks.convolutional import (
    paper_cnn,
    plain_cnn,
    residual_cnn,
)
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import CharacterRnn, Mixer, RowRnn, Vit
from meta_train.problems.situations.generated import (
    directions,
    distances,
    moons,
    products,
)
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.texts import CODE_0, CODE_1, CODE_2, text_gpt
from meta_train.problems.supervised import first
from meta_train.problems.text import VOCABULARY

# of each kind in turn for development, validation and test
PROBLEMS = {
    "short-mlp-10": classify(FASHION_14, 64, 10, mlp, (196, 64, 10)),
    "short-gru-10": classify(CODE_1, 16, 10, CharacterRnn, nn.GRU, VOCABULARY, 24, 48),
    "short-mixer-10": classify(CIFAR_16, 64, 10, Mixer, 3, 16, 4, 48, 1),
    "short-cnn-30": classify(MNIST_14, 64, 30, paper_cnn, 1, (8, 16, 16)),
    "short-vit-30": classify(FASHION_14, 64, 30, Vit, 1, 14, 7, 32, 4, 2),
    "short-gpt-30": classify(CODE_2, 32, 30, text_gpt, 48, 2, 1, tied=True),
    "short-gpt-100": classify(CODE_0, 16, 100, text_gpt, 64, 4, 2),
    "short-resnet-100": classify(FASHION_14, 32, 100, residual_cnn, 1, (8, 16)),
    "short-lstm-100": classify(MNIST_14, 64, 100, RowRnn, nn.LSTM, 14, 48),
    "short-moons-200": classify(moons, 64, 200, mlp, (2, 16, 2)),
    "short-products-300": regress(products, 64, 300, mlp, (8, 64, 64, 7), nn.GELU),
    "short-directions-20": regress(directions, 128, 20, mlp, (12, 32, 3), nn.Tanh),
    "long-mlp-10000": classify(MNIST_7, 32, 10000, mlp, (49, 32, 10)),
    "long-cnn-10000": classify(FASHION_7, 32, 10000, plain_cnn, (1, 8, 16), (3, 3)),
    "long-distances-10000": regress(distances, 32, 10000, mlp, (6, 48, 48, 4), nn.SiLU),
    "batch-1": classify(MNIST_7, 1, 2000, mlp, (49, 32, 10)),
    "batch-1-brightness": regress(
        lower_brightness(MNIST_7), 1, 2000, mlp, (28, 48, 1), nn.GELU
    ),
    "batch-2-cnn": classify(MNIST_14, 2, 1000, plain_cnn, (1, 12, 24), (5, 3)),
    "batch-full-m7": classify(first(MNIST_7, 4000), None, 150, mlp, (49, 64, 10)),
    "batch-full-fm14": classify(
        first(FASHION_14, 1000), None, 100, paper_cnn, 1, (12, 16, 24)
    ),
    "batch-full-fm7": classify(first(FASHION_7, 3000), None, 120, mlp, (49, 96, 10)),
}
