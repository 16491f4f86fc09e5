"""Problems with networks that are trained on CPUs, for docs/costs.md."""

from functools import partial

import torch
from torch import Tensor, nn

from meta_train.problems import load_problem
from meta_train.problems.catalogue import classify, encode
from meta_train.problems.images import CIFAR, pixels
from meta_train.problems.networks.dense import VariationalAutoencoder
from meta_train.problems.networks.dense import mlp as dense_network
from meta_train.problems.networks.sequential import Gpt
from meta_train.problems.situations.generated import fixed, generated
from meta_train.problems.text import TEXT_64, VOCABULARY

INPUTS, HIDDEN, CLASSES = 16, 64, 4


def labelled(count: int) -> tuple[Tensor, Tensor]:
    """Normal inputs (count, INPUTS), and their classes (count,) by a random network."""
    inputs = torch.randn(count, INPUTS)
    hidden = torch.tanh(inputs @ fixed(INPUTS, HIDDEN, seed=0))
    return inputs, (hidden @ fixed(HIDDEN, CLASSES, seed=1)).argmax(1)


def resnet18() -> nn.Module:
    """torchvision's ResNet-18 for ten classes; torchvision is optional."""
    import torchvision

    return torchvision.models.resnet18(num_classes=10)


# Arguments: data, rows of a batch, steps, network and its arguments.
WIDTHS = INPUTS, HIDDEN, HIDDEN, CLASSES
MNIST_PIXELS = partial(pixels, "mnist")
mlp = partial(classify, generated(labelled), 64, 2000, dense_network, WIDTHS)
vae = partial(encode, MNIST_PIXELS, 128, 1000, VariationalAutoencoder, 784, 400, 20)
gpt = partial(classify, TEXT_64, 12, 1000, Gpt, VOCABULARY, 64, 128, 4, 4)
cnn = partial(load_problem, "fm-16")
resnet18_16 = partial(classify, CIFAR, 16, 1000, resnet18)
resnet18_128 = partial(classify, CIFAR, 128, 400, resnet18)

PROBLEMS = tuple(
    f"benchmarks.small_networks:{name}"
    for name in ("mlp", "vae", "gpt", "cnn", "resnet18_16", "resnet18_128")
)
