"""Pretrained networks: continued training, fine-tuning, LoRA and adapters.

Continued trainings (`same-*`) start near the minimum. They measure whether an optimizer
does harm: a good one keeps the initial loss, a bad one raises it. Fine-tuning (`new-*`)
uses other data, on which the loss can fall clearly.
"""

from functools import cache

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.images import FASHION_14
from meta_train.problems.networks.sequential import Block, Gpt
from meta_train.problems.situations.problems import name_key, read_situations
from meta_train.problems.supervised import Splits, SupervisedProblem, mapped
from ngopt.schedule import cosine_schedule

PRETRAINING_LR = 0.006  # of Adam with warm-up and cosine decay
WARMUP = 0.1  # share of the steps
PRETRAINING = 1.0  # share of the steps that are run; less in tests

PRETRAINED: dict[str, SupervisedProblem] = {}
for _, problem in read_situations("pretrained", globals()):
    PRETRAINED[problem.name] = problem


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


@cache
def negatives() -> Splits:
    """FashionMNIST with negated normalised pixels."""
    return mapped(FASHION_14(), lambda images, labels: (-images, labels))


class Lora(nn.Module):
    """A frozen linear layer plus the product of two matrices (Hu et al. 2022).

    scale: factor of the product.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float = LORA_SCALE):
        super().__init__()
        self.layer = layer
        self.scale = scale
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * self.up(self.down(x))


def with_lora(network: str, rank: int) -> nn.Module:
    """A frozen pretrained network with trainable LoRA matrices at its linear layers."""
    model = pretrained(network)
    add_lora(model, rank)
    return model


def add_lora(model: nn.Module, rank: int, scale: float = LORA_SCALE) -> None:
    """Freezes a network, and puts a `Lora` around each of its linear layers."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Lora(child, rank, scale))


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
        hidden = self.down(x).relu()
        return x + self.up(hidden)


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
