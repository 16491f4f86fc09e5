"""Networks with every kind of layer that has a rule, each small, with an example
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
from tests.zoo import (
    algebra,
    attention,
    convolutional,
    dense,
    distinguishable,
    recurrent,
)
from tests.zoo.attention import GPT, Attention, HeadNorms

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
    "tokens": lambda: (attention.Tokens(), torch.randn(2, 3, 8, 8)),
    "head norms": lambda: (
        nn.Sequential(nn.Linear(3, 6), HeadNorms(6), nn.Linear(6, 2)),
        torch.randn(2, 5, 3),
    ),
    "einsum": lambda: (attention.HeadsInEinsum(), torch.randn(2, 5, 6)),
    "relative bias": lambda: (attention.RelativeBias(), torch.randn(2, 6, 3)),
    "windows": lambda: (attention.Windows(), torch.randn(2, 1, 8, 8)),
    "perceiver": lambda: (attention.Perceiver(), torch.randn(2, 4, 3)),
    "seeds": lambda: (attention.Seeds(), torch.randn(2, 5, 3)),
    "prefixed": lambda: (attention.Prefixed(), torch.randn(2, 5, 3)),
    "translation": lambda: (
        attention.Translation(),
        (torch.randint(5, (2, 4)), torch.randint(5, (2, 3))),
    ),
    "residual": lambda: (convolutional.Residual(), torch.randn(2, 2, 8, 8)),
    "grouped": lambda: (convolutional.Grouped(), torch.randn(2, 4, 8, 8)),
    "shuffled": lambda: (convolutional.Shuffled(), torch.randn(2, 1, 4, 4)),
    "group norm": lambda: (group_normed(), torch.randn(2, 2, 5, 5)),
    "conv1d": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU(), nn.Conv1d(3, 2, 3)),
        torch.randn(2, 2, 16),
    ),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1)),
        torch.randn(2, 2, 4, 4, 4),
    ),
    "unet": lambda: (convolutional.UNet(), torch.randn(2, 1, 8, 8)),
    "resnext": lambda: (convolutional.Aggregated(), torch.randn(2, 2, 6, 6)),
    "mbconv": lambda: (convolutional.InvertedBottleneck(), torch.randn(2, 2, 8, 8)),
    "conformer": lambda: (convolutional.ConformerConvolution(), torch.randn(2, 7, 3)),
    "densenet": lambda: (convolutional.DenseBlock(), torch.randn(2, 2, 6, 6)),
    "film": lambda: (convolutional.Modulated(nn.Identity()), two_inputs()),
    "adain": lambda: (convolutional.Modulated(nn.InstanceNorm2d(4)), two_inputs()),
    "deep sets": lambda: (dense.DeepSets(), torch.randn(2, 6, 3)),
    "triplane": lambda: (dense.Triplane(), torch.rand(7, 3)),
    "gated": lambda: (dense.Gated(), torch.randn(2, 4)),
    "shared": lambda: (dense.Shared(), torch.randn(2, 5, 3)),
    "overlapping": lambda: (dense.Overlapping(), torch.randn(2, 3)),
    "siren": lambda: (dense.Siren(), torch.randn(4, 2)),
    "vae": lambda: (dense.VariationalAutoencoder(), torch.randn(2, 5)),
    "tied autoencoder": lambda: (dense.TiedAutoencoder(), torch.randn(2, 5)),
    "realnvp": lambda: (dense.Coupling(), torch.randn(2, 4)),
    "kan": lambda: (
        nn.Sequential(dense.Splines(3, 4), dense.Splines(4, 2)),
        torch.randn(2, 3),
    ),
    "lora": lambda: (dense.LowRank(), torch.randn(2, 3)),
    "repeated": lambda: (dense.Repeated(), torch.randn(2, 3)),
    "experts": lambda: (dense.Experts(), torch.randn(4, 2)),
    "dynamic": lambda: (
        dense.Dynamic(),
        ({"features": torch.randn(4, 3), "class": torch.randint(4, (4,))},),
    ),
    "complex": lambda: (dense.Complex(), torch.randn(2, 3)),
    "lstm": lambda: (
        recurrent.Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        torch.randn(2, 4, 3),
    ),
    "projected lstm": lambda: (
        recurrent.Recurrent(nn.LSTM, proj_size=2),
        torch.randn(2, 4, 3),
    ),
    "gru": lambda: (recurrent.Recurrent(nn.GRU), torch.randn(2, 4, 3)),
    "rnn": lambda: (
        recurrent.Recurrent(nn.RNN, nonlinearity="relu"),
        torch.randn(2, 4, 3),
    ),
    "states": lambda: (recurrent.States(), torch.randn(2, 5, 3)),
    "encoder decoder": lambda: (recurrent.EncoderDecoder(), torch.randn(5, 3)),
    "cells": lambda: (recurrent.Cells(), torch.randn(2, 3, 3)),
    "standardised": lambda: (algebra.Standardised(), torch.randn(2, 4, 3)),
    "regions": lambda: (algebra.Regions(), torch.randn(2, 3)),
    "bags": lambda: (bags(), torch.randint(9, (2, 6))),
    "dueling": lambda: (algebra.Dueling(), torch.randn(2, 2, 5)),
    "selective": lambda: (algebra.Selective(), torch.randn(2, 3, 4)),
    "mixture": lambda: (algebra.Mixture(), torch.randn(2, 3, 6)),
    "generator": lambda: (algebra.Generator(), torch.randn(2, 5)),
    "repeated channels": lambda: (algebra.RepeatedChannels(), torch.randn(2, 2, 5)),
    "mirrored": lambda: (algebra.Mirrored(), torch.randn(2, 3)),
    "sinusoidal": lambda: (distinguishable.Sinusoidal(), torch.randn(2, 5, 3)),
    "rotary": lambda: (distinguishable.Rotary(), torch.randn(2, 5, 3)),
    "parts": lambda: (distinguishable.Parts(), torch.randn(2, 3)),
    "normalised": lambda: (distinguishable.Normalised(), torch.randn(2, 5, 3)),
    "mixer": lambda: (distinguishable.Mixer(), torch.randn(2, 5, 3)),
    "equilibrium": lambda: (distinguishable.Equilibrium(), torch.randn(2, 2)),
}


def zoo_network(name: str) -> tuple[nn.Module, Any]:
    """A network in float64 and training mode, and an example input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = ZOO[name]()

    def double(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    return model.double(), tree_map_only(Tensor, double, example)


@cache
def zoo_graph(name: str) -> NeuralGraph:
    """The graph of a network, built once. Building must change no state."""
    model, example = zoo_network(name)
    before = copy.deepcopy(model.state_dict())
    graph = build_graph(model, example)
    rows = zip(before.values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in rows)
    return graph
