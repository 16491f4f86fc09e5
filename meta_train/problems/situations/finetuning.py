"""Pretrained networks: continued training, fine-tuning, LoRA and adapters.

Continued training (`same-*`) starts near the minimum. It measures whether an optimizer
does harm: a good one keeps the initial loss, a bad one raises it. Fine-tuning (`new-*`)
uses other data, on which the loss can fall clearly.
"""

from functools import cache

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.images import FASHION_14, GRAY_16, MNIST_14
from meta_train.problems.networks.convolutional import strided_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import Block, CharacterRnn, Gpt
from meta_train.problems.situations.problems import classify, name_key
from meta_train.problems.situations.texts import (
    CODE_2,
    DOCSTRINGS,
    DOCUMENTATION,
    LOWER_CASE,
    MIXED_CASE,
    STATEMENTS,
    text_gpt,
)
from meta_train.problems.supervised import Batch, named, on_batches
from meta_train.problems.text import VOCABULARY
from ngopt.schedule import cosine_schedule

PRETRAINING_LR = 0.006  # of Adam with warm-up and cosine decay
WARMUP = 0.1  # share of the steps
PRETRAINING = 1.0  # share of the steps that are run; less in tests

# The first three are for development, the next two for validation, the last for test.
PRETRAINED = named(
    {
        "cnn-digits": classify(
            MNIST_14, 64, 300, strided_cnn, (1, 12, 24, 32), nn.BatchNorm2d, nn.ReLU
        ),
        "mlp-digits": classify(MNIST_14, 64, 400, mlp, (196, 96, 96, 10)),
        "gpt-lower-case": classify(LOWER_CASE, 16, 400, text_gpt, 48, 4, 2),
        "mlp-clothes": classify(FASHION_14, 64, 400, mlp, (196, 128, 64, 10), nn.GELU),
        "gpt-docstrings": classify(DOCSTRINGS, 16, 450, text_gpt, 40, 4, 2),
        "cnn-clothes": classify(
            FASHION_14, 64, 400, strided_cnn, (1, 16, 32), activation=nn.GELU
        ),
        "gpt-code": classify(CODE_2, 16, 600, text_gpt, 64, 4, 1),
        "gru-code": classify(CODE_2, 16, 500, CharacterRnn, nn.GRU, VOCABULARY, 24, 64),
    }
)


@cache
def weights(name: str) -> dict[str, Tensor]:
    """Weights of a network of `PRETRAINED`; training takes some seconds."""
    problem = PRETRAINED[name]
    seed = name_key(name)
    model = problem.init(seed)
    optimizer = torch.optim.Adam(model.parameters(), PRETRAINING_LR)
    steps = round(PRETRAINING * problem.steps)
    schedule = cosine_schedule(optimizer, steps, WARMUP)
    for step in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            problem.loss(model, problem.batch(seed, step)).backward()
        optimizer.step()
        schedule.step()
    return model.state_dict()


def pretrained(name: str) -> nn.Module:
    """A trained network of `PRETRAINED`."""
    # the caller's random numbers do not depend on whether the weights are cached
    with seeded(0, 6):
        model = PRETRAINED[name].build()
        model.load_state_dict(weights(name))
    return model


LORA_SCALE = 2.0  # alpha / rank, the most common choice


@on_batches
def negated(images: Tensor, labels: Tensor) -> Batch:
    return -images, labels


class Lora(nn.Module):
    """A frozen linear layer plus the product of two matrices (Hu et al. 2022)."""

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + LORA_SCALE * self.up(self.down(x))


def with_lora(network: str, rank: int) -> nn.Module:
    """A frozen pretrained network with trainable LoRA matrices at its linear layers."""
    model = pretrained(network).requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Lora(child, rank))
    return model


class Adapter(nn.Module):
    """A residual bottleneck after a layer (Houlsby et al. 2019)."""

    def __init__(self, layer: nn.Module, width: int, bottleneck: int):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        for p in self.up.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x + self.up(self.down(x).relu())


def with_adapters(name: str, bottleneck: int) -> nn.Module:
    """A frozen pretrained GPT with adapters after all attention layers and MLPs."""
    model = pretrained(name).requires_grad_(False)
    assert isinstance(model, Gpt)
    width = model.characters.embedding_dim
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention = Adapter(block.attention, width, bottleneck)
        block.mlp = nn.Sequential(Adapter(block.mlp, width, bottleneck))
    return model


def with_new_head(name: str) -> nn.Module:
    """A pretrained classifier with a newly initialised last layer."""
    model = pretrained(name)
    linear_layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    linear_layers[-1].reset_parameters()
    return model


# of each kind in turn for development, validation and test
PROBLEMS = {
    "same-gpt-30": classify(LOWER_CASE, 16, 30, pretrained, "gpt-lower-case"),
    "same-gpt-5": classify(DOCSTRINGS, 16, 5, pretrained, "gpt-docstrings"),
    "same-gru-30": classify(CODE_2, 16, 30, pretrained, "gru-code"),
    "same-cnn-100": classify(MNIST_14, 64, 100, pretrained, "cnn-digits"),
    "same-mlp-100": classify(FASHION_14, 64, 100, pretrained, "mlp-clothes"),
    "same-gpt-200": classify(CODE_2, 16, 200, pretrained, "gpt-code"),
    "new-gpt-30": classify(MIXED_CASE, 16, 30, pretrained, "gpt-lower-case"),
    "new-gpt-150": classify(STATEMENTS, 16, 150, pretrained, "gpt-docstrings"),
    "new-gru-60": classify(DOCUMENTATION, 16, 60, pretrained, "gru-code"),
    "new-cnn-100": classify(FASHION_14, 64, 100, with_new_head, "cnn-digits"),
    "new-mlp-30": classify(negated(FASHION_14), 64, 30, pretrained, "mlp-clothes"),
    "new-cnn-300": classify(GRAY_16, 64, 300, pretrained, "cnn-clothes"),
    "lora-gpt-30": classify(MIXED_CASE, 16, 30, with_lora, "gpt-lower-case", 4),
    "lora-gpt-100": classify(STATEMENTS, 16, 100, with_lora, "gpt-docstrings", 2),
    "lora-gpt-200": classify(DOCUMENTATION, 16, 200, with_lora, "gpt-code", 8),
    "lora-mlp-100": classify(FASHION_14, 64, 100, with_lora, "mlp-digits", 4),
    "adapters-gpt-60": classify(STATEMENTS, 16, 60, with_adapters, "gpt-docstrings", 8),
    "adapters-gpt-150": classify(DOCUMENTATION, 16, 150, with_adapters, "gpt-code", 4),
}
