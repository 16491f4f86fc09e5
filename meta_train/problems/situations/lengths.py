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

# in turn for development, validation and test
SHORT = {
    "short-mlp-10": classify(FASHION_14, lambda: mlp((196, 64, 10)), 64, 10),
    "short-gru-10": classify(
        CODE_1, lambda: CharacterRnn(nn.GRU, VOCABULARY, 24, 48), 16, 10
    ),
    "short-mixer-10": classify(CIFAR_16, lambda: Mixer(3, 16, 4, 48, 1), 64, 10),
    "short-cnn-30": classify(MNIST_14, lambda: paper_cnn(1, (8, 16, 16)), 64, 30),
    "short-vit-30": classify(FASHION_14, lambda: Vit(1, 14, 7, 32, 4, 2), 64, 30),
    "short-gpt-30": classify(CODE_2, lambda: text_gpt(48, 2, 1, tied=True), 32, 30),
    "short-gpt-100": classify(CODE_0, lambda: text_gpt(64, 4, 2), 16, 100),
    "short-resnet-100": classify(FASHION_14, lambda: residual_cnn(1, (8, 16)), 32, 100),
    "short-lstm-100": classify(MNIST_14, lambda: RowRnn(nn.LSTM, 14, 48), 64, 100),
    "short-moons-200": classify(moons, lambda: mlp((2, 16, 2)), 64, 200),
    "short-products-300": regress(
        products, lambda: mlp((8, 64, 64, 7), nn.GELU), 64, 300
    ),
    "short-directions-20": regress(
        directions, lambda: mlp((12, 32, 3), nn.Tanh), 128, 20
    ),
}

LONG = {
    "long-mlp-10000": classify(MNIST_7, lambda: mlp((49, 32, 10)), 32, 10000),
    "long-cnn-10000": classify(
        FASHION_7, lambda: plain_cnn((1, 8, 16), (3, 3)), 32, 10000
    ),
    "long-distances-10000": regress(
        distances, lambda: mlp((6, 48, 48, 4), nn.SiLU), 32, 10000
    ),
}

BATCHES_OF_ONE_AND_ALL = {
    "batch-1": classify(MNIST_7, lambda: mlp((49, 32, 10)), 1, 2000),
    "batch-1-brightness": regress(
        lambda: lower_brightness("mnist"), lambda: mlp((28, 48, 1), nn.GELU), 1, 2000
    ),
    "batch-2-cnn": classify(MNIST_14, lambda: plain_cnn((1, 12, 24), (5, 3)), 2, 1000),
    "batch-full-m7": classify(
        first(MNIST_7, 4000), lambda: mlp((49, 64, 10)), None, 150
    ),
    "batch-full-fm14": classify(
        first(FASHION_14, 1000), lambda: paper_cnn(1, (12, 16, 24)), None, 100
    ),
    "batch-full-fm7": classify(
        first(FASHION_7, 3000), lambda: mlp((49, 96, 10)), None, 120
    ),
}
