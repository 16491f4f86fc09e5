"""Networks that are trained already: continued, moved to other data, or adapted."""

from __future__ import annotations

from copy import deepcopy
from functools import cache, partial

import torch
from torch import Tensor, nn

from meta_train.problems.common import FASHION_14, MNIST_14, classify
from meta_train.problems.networks.convolutional import strided_cnn
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import Block, CharacterReader, Gpt
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.supervised import CLASSIFY, Splits, SupervisedProblem
from meta_train.problems.text import (
    FILES,
    VOCABULARY,
    Windows,
    library_text,
    window_starts,
)
from tasks.common.random import seeded

PRETRAINING_LR = 0.005  # of Adam, linearly to zero
PRETRAINING = 1.0  # share of the steps
LORA_SCALE = 2.0  # alpha / rank, as most recipes have it
HALF = len(FILES) // 2


@cache
def characters(length: int, second: bool) -> Splits:
    """Windows of text as `next_characters` has them, of the first files or the others."""
    text, ends = library_text()
    parts = []
    for starts in window_starts(ends, length + 1):
        file = torch.searchsorted(ends, starts, right=True)
        parts.append(Windows(text, starts[(file >= HALF) == second], length))
    return Splits(*parts)


FIRST_TEXT = partial(characters, 48, False)
SECOND_TEXT = partial(characters, 48, True)


def _cnn() -> nn.Module:
    return strided_cnn((1, 12, 24, 32), nn.BatchNorm2d, nn.ReLU)


PRETRAINED = {
    problem.name: problem
    for problem in (
        SupervisedProblem("cnn", MNIST_14, _cnn, CLASSIFY, 64, 300),
        SupervisedProblem(
            "mlp", MNIST_14, partial(mlp, (196, 96, 96, 10)), CLASSIFY, 64, 400
        ),
        SupervisedProblem(
            "gpt", FIRST_TEXT, partial(Gpt, VOCABULARY, 64, 48, 4, 2), CLASSIFY, 16, 700
        ),
        SupervisedProblem(
            "gru",
            FIRST_TEXT,
            partial(CharacterReader, nn.GRU, VOCABULARY, 24, 64),
            CLASSIFY,
            16,
            500,
        ),
    )
}


@cache
def weights(name: str) -> dict[str, Tensor]:
    """The weights of a network of `PRETRAINED` after some seconds of Adam."""
    problem = PRETRAINED[name]
    model = problem.init(0)
    optimizer = torch.optim.Adam(model.parameters(), PRETRAINING_LR)
    steps = round(PRETRAINING * problem.steps)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        optimizer.zero_grad()
        with torch.enable_grad():
            problem.loss(model, problem.batch(0, step)).backward()
        optimizer.step()
        schedule.step()
    return model.state_dict()


def pretrained(name: str) -> nn.Module:
    """A network of `PRETRAINED`, trained."""
    # the caller's random numbers do not depend on whether the weights are cached
    with seeded(0, 6):
        model = PRETRAINED[name].build()
        model.load_state_dict(weights(name))
    return model


class Lora(nn.Module):
    """A frozen linear layer and the product of two matrices beside it (Hu et al. 2022)."""

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


def with_adapters(bottleneck: int) -> nn.Module:
    """The trained GPT with an adapter behind each part of its blocks."""
    model = _frozen(pretrained("gpt"))
    assert isinstance(model, Gpt)
    width = model.characters.embedding_dim
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attention = Adapter(block.attention, width, bottleneck)
        block.mlp = nn.Sequential(Adapter(block.mlp, width, bottleneck))
    return model


class Prompted(nn.Module):
    """A frozen GPT that reads learned vectors first, which begin at zero (Lester et al. 2021)."""

    def __init__(self, model: Gpt, count: int):
        super().__init__()
        self.model = model
        self.prompt = nn.Parameter(torch.zeros(count, model.characters.embedding_dim))

    def forward(self, codes: Tensor) -> Tensor:
        """codes: (b, t) int64; returns logits (b, vocabulary, t)"""
        gpt, length = self.model, codes.shape[1]
        x = gpt.characters(codes) + gpt.positions.weight[:length]
        x = torch.cat([self.prompt.expand(len(codes), -1, -1), x], 1)
        for block in gpt.blocks:
            x = block(x)
        return gpt.head(gpt.norm(x[:, -length:])).mT


def with_prompt(count: int) -> nn.Module:
    model = _frozen(pretrained("gpt"))
    assert isinstance(model, Gpt)
    return Prompted(model, count)


def with_new_head(name: str) -> nn.Module:
    """A trained classifier whose last layer begins anew."""
    model = pretrained(name)
    *_, last = (m for m in model.modules() if isinstance(m, nn.Linear))
    last.reset_parameters()
    return model


def _frozen(model: nn.Module) -> nn.Module:
    return deepcopy(model).requires_grad_(False)


_CONTINUED: Kind = (
    [
        classify(
            "same-gpt-30",
            FIRST_TEXT,
            partial(pretrained, "gpt"),
            16,
            30,
        ),
        classify("same-cnn-100", MNIST_14, partial(pretrained, "cnn"), 64, 100),
    ],
    [
        classify("same-gpt-5", FIRST_TEXT, partial(pretrained, "gpt"), 16, 5),
        classify("same-mlp-100", MNIST_14, partial(pretrained, "mlp"), 64, 100),
    ],
    [
        classify(
            "same-gru-30",
            FIRST_TEXT,
            partial(pretrained, "gru"),
            16,
            30,
        ),
        classify(
            "same-gpt-200",
            FIRST_TEXT,
            partial(pretrained, "gpt"),
            16,
            200,
        ),
    ],
)


_MOVED: Kind = (
    [
        classify(
            "new-gpt-30",
            SECOND_TEXT,
            partial(pretrained, "gpt"),
            16,
            30,
        ),
        classify("new-cnn-100", FASHION_14, partial(with_new_head, "cnn"), 64, 100),
    ],
    [
        classify(
            "new-gpt-150",
            SECOND_TEXT,
            partial(pretrained, "gpt"),
            16,
            150,
        ),
        classify("new-mlp-30", FASHION_14, partial(with_new_head, "mlp"), 64, 30),
    ],
    [
        classify(
            "new-gru-60",
            SECOND_TEXT,
            partial(pretrained, "gru"),
            16,
            60,
        ),
        classify("new-cnn-300", FASHION_14, partial(pretrained, "cnn"), 64, 300),
    ],
)


_ADAPTED: Kind = (
    [
        classify(
            "lora-gpt-30",
            SECOND_TEXT,
            partial(with_lora, "gpt", 4),
            16,
            30,
        ),
        classify("lora-mlp-100", FASHION_14, partial(with_lora, "mlp", 4), 64, 100),
    ],
    [
        classify(
            "lora-gpt-100",
            SECOND_TEXT,
            partial(with_lora, "gpt", 2),
            16,
            100,
        ),
        classify(
            "adapters-gpt-60",
            SECOND_TEXT,
            partial(with_adapters, 8),
            16,
            60,
        ),
    ],
    [
        classify(
            "lora-gpt-200",
            SECOND_TEXT,
            partial(with_lora, "gpt", 8),
            16,
            200,
        ),
        classify(
            "adapters-gpt-150",
            SECOND_TEXT,
            partial(with_adapters, 4),
            16,
            150,
        ),
    ],
)


KINDS: dict[str, Kind] = {
    "continued": _CONTINUED,
    "fine-tuned": _MOVED,
    "adapters": _ADAPTED,
}
