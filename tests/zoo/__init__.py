"""Networks with every kind of layer that the graph knows, each small, with an example
input."""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ngopt import build_graph
from ngopt.graph import NeuralGraph
from tests.zoo.algebra import (
    Dueling,
    Generator,
    Mirrored,
    Mixture,
    Regions,
    RepeatedChannels,
    Selective,
    Standardised,
)
from tests.zoo.attention import (
    GPT,
    Attention,
    HeadNorms,
    HeadsInEinsum,
    Perceiver,
    Prefixed,
    RelativeBias,
    Seeds,
    Tokens,
    Translation,
    Windows,
)
from tests.zoo.convolutional import (
    Aggregated,
    ConformerConvolution,
    DenseBlock,
    Grouped,
    InvertedBottleneck,
    Modulated,
    Residual,
    Shuffled,
    UNet,
)
from tests.zoo.dense import (
    Complex,
    Coupling,
    DeepSets,
    Dynamic,
    Experts,
    Gated,
    LowRank,
    Overlapping,
    Repeated,
    Shared,
    Siren,
    Splines,
    TiedAutoencoder,
    Triplane,
    VariationalAutoencoder,
)
from tests.zoo.distinguishable import (
    Equilibrium,
    Mixer,
    Normalised,
    Parts,
    Rotary,
    Sinusoidal,
)
from tests.zoo.recurrent import Cells, EncoderDecoder, Recurrent, States

features = partial(torch.randn, 2, 5, 12)
encoder_layer = partial(
    nn.TransformerEncoderLayer, 12, 3, 16, dropout=0.0, batch_first=True
)


def two_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 2, 6, 6), torch.randn(2, 3)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)


def group_normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 3, 1)
    )


def bags() -> nn.Module:
    return nn.Sequential(
        nn.EmbeddingBag(9, 5, padding_idx=0), nn.ReLU(), nn.Linear(5, 2)
    )


# Networks and example inputs.
ZOO: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "gpt": lambda: (GPT(), torch.randint(11, (2, 6))),
    "attention": lambda: (
        nn.Sequential(nn.Linear(12, 12), Attention(12, 3, fused=False)),
        features(),
    ),
    "encoder layer": lambda: (encoder_layer(), features()),
    "transformer": lambda: (encoder(), features()),
    "tokens": lambda: (Tokens(), torch.randn(2, 3, 8, 8)),
    "head norms": lambda: (
        nn.Sequential(nn.Linear(3, 6), HeadNorms(6), nn.Linear(6, 2)),
        torch.randn(2, 5, 3),
    ),
    "einsum": lambda: (HeadsInEinsum(), torch.randn(2, 5, 6)),
    "relative bias": lambda: (RelativeBias(), torch.randn(2, 6, 3)),
    "windows": lambda: (Windows(), torch.randn(2, 1, 8, 8)),
    "perceiver": lambda: (Perceiver(), torch.randn(2, 4, 3)),
    "seeds": lambda: (Seeds(), torch.randn(2, 5, 3)),
    "prefixed": lambda: (Prefixed(), torch.randn(2, 5, 3)),
    "translation": lambda: (
        Translation(),
        (torch.randint(5, (2, 4)), torch.randint(5, (2, 3))),
    ),
    "residual": lambda: (Residual(), torch.randn(2, 2, 8, 8)),
    "grouped": lambda: (Grouped(), torch.randn(2, 4, 8, 8)),
    "shuffled": lambda: (Shuffled(), torch.randn(2, 1, 4, 4)),
    "group norm": lambda: (group_normed(), torch.randn(2, 2, 5, 5)),
    "conv1d": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU(), nn.Conv1d(3, 2, 3)),
        torch.randn(2, 2, 16),
    ),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1)),
        torch.randn(2, 2, 4, 4, 4),
    ),
    "unet": lambda: (UNet(), torch.randn(2, 1, 8, 8)),
    "resnext": lambda: (Aggregated(), torch.randn(2, 2, 6, 6)),
    "mbconv": lambda: (InvertedBottleneck(), torch.randn(2, 2, 8, 8)),
    "conformer": lambda: (ConformerConvolution(), torch.randn(2, 7, 3)),
    "densenet": lambda: (DenseBlock(), torch.randn(2, 2, 6, 6)),
    "film": lambda: (Modulated(nn.Identity()), two_inputs()),
    "adain": lambda: (Modulated(nn.InstanceNorm2d(4)), two_inputs()),
    "deep sets": lambda: (DeepSets(), torch.randn(2, 6, 3)),
    "triplane": lambda: (Triplane(), torch.rand(7, 3)),
    "gated": lambda: (Gated(), torch.randn(2, 4)),
    "shared": lambda: (Shared(), torch.randn(2, 5, 3)),
    "overlapping": lambda: (Overlapping(), torch.randn(2, 3)),
    "siren": lambda: (Siren(), torch.randn(4, 2)),
    "vae": lambda: (VariationalAutoencoder(), torch.randn(2, 5)),
    "tied autoencoder": lambda: (TiedAutoencoder(), torch.randn(2, 5)),
    "realnvp": lambda: (Coupling(), torch.randn(2, 4)),
    "kan": lambda: (nn.Sequential(Splines(3, 4), Splines(4, 2)), torch.randn(2, 3)),
    "lora": lambda: (LowRank(), torch.randn(2, 3)),
    "repeated": lambda: (Repeated(), torch.randn(2, 3)),
    "experts": lambda: (Experts(), torch.randn(4, 2)),
    "dynamic": lambda: (
        Dynamic(),
        ({"features": torch.randn(4, 3), "class": torch.randint(4, (4,))},),
    ),
    "complex": lambda: (Complex(), torch.randn(2, 3)),
    "lstm": lambda: (
        Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        torch.randn(2, 4, 3),
    ),
    "projected lstm": lambda: (Recurrent(nn.LSTM, proj_size=2), torch.randn(2, 4, 3)),
    "gru": lambda: (Recurrent(nn.GRU), torch.randn(2, 4, 3)),
    "rnn": lambda: (Recurrent(nn.RNN, nonlinearity="relu"), torch.randn(2, 4, 3)),
    "states": lambda: (States(), torch.randn(2, 5, 3)),
    "encoder decoder": lambda: (EncoderDecoder(), torch.randn(5, 3)),
    "cells": lambda: (Cells(), torch.randn(2, 3, 3)),
    "standardised": lambda: (Standardised(), torch.randn(2, 4, 3)),
    "regions": lambda: (Regions(), torch.randn(2, 3)),
    "bags": lambda: (bags(), torch.randint(9, (2, 6))),
    "dueling": lambda: (Dueling(), torch.randn(2, 2, 5)),
    "selective": lambda: (Selective(), torch.randn(2, 3, 4)),
    "mixture": lambda: (Mixture(), torch.randn(2, 3, 6)),
    "generator": lambda: (Generator(), torch.randn(2, 5)),
    "repeated channels": lambda: (RepeatedChannels(), torch.randn(2, 2, 5)),
    "mirrored": lambda: (Mirrored(), torch.randn(2, 3)),
    "sinusoidal": lambda: (Sinusoidal(), torch.randn(2, 5, 3)),
    "rotary": lambda: (Rotary(), torch.randn(2, 5, 3)),
    "parts": lambda: (Parts(), torch.randn(2, 3)),
    "normalised": lambda: (Normalised(), torch.randn(2, 5, 3)),
    "mixer": lambda: (Mixer(), torch.randn(2, 5, 3)),
    "equilibrium": lambda: (Equilibrium(), torch.randn(2, 2)),
}


def zoo_network(name: str) -> tuple[nn.Module, Any]:
    """A network in float64 and training mode, and an example input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = ZOO[name]()
    return model.double(), tree_map_only(Tensor, _double, example)


@cache
def zoo_graph(name: str) -> NeuralGraph:
    """The graph of a network, built once. Building must change no state."""
    model, example = zoo_network(name)
    before = copy.deepcopy(model.state_dict())
    graph = build_graph(model, example)
    rows = zip(before.values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in rows)
    return graph


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
