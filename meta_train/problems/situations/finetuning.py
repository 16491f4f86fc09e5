"""Networks that are trained already: continued, moved to other data, or adapted.

Continued networks (`same-*`) can hardly be improved. They measure whether an optimizer
does harm: a good one keeps the loss of the beginning, a bad one raises it. Fine-tuned
networks (`new-*`) move to other data, and can be improved clearly.
"""

from __future__ import annotations

from functools import cache, partial

from torch import Tensor, nn

from meta_train.problems.common import FASHION_14, GRAY_16, Build
from meta_train.problems.networks.sequential import Block, Gpt
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.pretrained import LENGTH, PRETRAINED, pretrained
from meta_train.problems.situations.problems import classify
from meta_train.problems.situations.texts import (
    MIXED_CASE,
    STATEMENTS,
    Text,
    documentation,
    windows,
)
from meta_train.problems.supervised import Batch, Splits, SupervisedProblem, mapped

LORA_SCALE = 2.0  # alpha / rank, as most recipes have it


@cache
def negatives() -> Splits:
    """FashionMNIST with the sign of all normalised pixels changed."""
    return mapped(FASHION_14, _negative)


def _negative(images: Tensor, labels: Tensor) -> Batch:
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


def with_lora(name: str, rank: int) -> nn.Module:
    """A trained network whose linear layers can be changed by low ranks alone."""
    model = _frozen(pretrained(name))
    found = [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    for parent, key, child in found:
        setattr(parent, key, Lora(child, rank))
    return model


class Adapter(nn.Module):
    """A bottleneck behind a layer, with a path around it (Houlsby et al. 2019)."""

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
    """A trained GPT with an adapter behind each part of its blocks."""
    model = _frozen(pretrained(name))
    assert isinstance(model, Gpt)
    width = model.characters.embedding_dim
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention = Adapter(block.attention, width, bottleneck)
        block.mlp = nn.Sequential(Adapter(block.mlp, width, bottleneck))
    return model


def with_new_head(name: str) -> nn.Module:
    """A trained classifier whose last layer begins anew."""
    model = pretrained(name)
    *_, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    last.reset_parameters()
    return model


def _frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def _continued(name: str, network: str, steps: int) -> SupervisedProblem:
    """The training of a network of `PRETRAINED` goes on."""
    known = PRETRAINED[network]
    build = partial(pretrained, network)
    return classify(name, known.data, build, known.batch_size, steps)


def _read(name: str, text: Text, build: Build, steps: int) -> SupervisedProblem:
    """Predicts the next character of another text than in the pre-training."""
    return classify(name, partial(windows, text, LENGTH), build, 16, steps)


_CONTINUED: Kind = (
    [
        _continued("same-gpt-30", "gpt-lower-case", 30),
        _continued("same-cnn-100", "cnn-digits", 100),
    ],
    [
        _continued("same-gpt-5", "gpt-docstrings", 5),
        _continued("same-mlp-100", "mlp-clothes", 100),
    ],
    [
        _continued("same-gru-30", "gru-code", 30),
        _continued("same-gpt-200", "gpt-code", 200),
    ],
)


_MOVED: Kind = (
    [
        _read("new-gpt-30", MIXED_CASE, partial(pretrained, "gpt-lower-case"), 30),
        classify(
            "new-cnn-100", FASHION_14, partial(with_new_head, "cnn-digits"), 64, 100
        ),
    ],
    [
        _read("new-gpt-150", STATEMENTS, partial(pretrained, "gpt-docstrings"), 150),
        classify("new-mlp-30", negatives, partial(pretrained, "mlp-clothes"), 64, 30),
    ],
    [
        _read("new-gru-60", documentation, partial(pretrained, "gru-code"), 60),
        classify("new-cnn-300", GRAY_16, partial(pretrained, "cnn-clothes"), 64, 300),
    ],
)


_ADAPTED: Kind = (
    [
        _read("lora-gpt-30", MIXED_CASE, partial(with_lora, "gpt-lower-case", 4), 30),
        classify(
            "lora-mlp-100", FASHION_14, partial(with_lora, "mlp-digits", 4), 64, 100
        ),
    ],
    [
        _read("lora-gpt-100", STATEMENTS, partial(with_lora, "gpt-docstrings", 2), 100),
        _read(
            "adapters-gpt-60",
            STATEMENTS,
            partial(with_adapters, "gpt-docstrings", 8),
            60,
        ),
    ],
    [
        _read("lora-gpt-200", documentation, partial(with_lora, "gpt-code", 8), 200),
        _read(
            "adapters-gpt-150",
            documentation,
            partial(with_adapters, "gpt-code", 4),
            150,
        ),
    ],
)


KINDS: dict[str, Kind] = {
    "continued": _CONTINUED,
    "fine-tuned": _MOVED,
    "adapters": _ADAPTED,
}
