"""Networks with every kind of layer that the graph knows, each small, with an example input."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ngopt import build_graph
from ngopt.graph import NeuralGraph
from tests.zoo.algebra import Dueling, Generator, Mirrored, Mixture, Regions, RepeatedChannels, Selective, Standardised
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
from tests.zoo.recurrent import Cells, EncoderDecoder, Recurrent, States
from tests.zoo.told_apart import Equilibrium, Mixer, Normalised, Parts, Rotary, Sinusoidal


def zoo() -> dict[str, tuple[nn.Module, Any]]:
    """Name -> network in float64 and training mode, example input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = _attention() | _convolutional() | _dense() | _recurrent() | _algebra() | _told_apart()
    return {name: (model.double(), tree_map_only(Tensor, _double, x)) for name, (model, x) in networks.items()}


@cache
def zoo_graph(name: str) -> NeuralGraph:
    """The graph of a network; built once."""
    return build_graph(*_zoo()[name])


_zoo = cache(zoo)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _attention() -> dict[str, tuple[nn.Module, Any]]:
    features = torch.randn(2, 5, 12)
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    return {
        "gpt": (GPT(), torch.randint(11, (2, 6))),
        "attention": (nn.Sequential(nn.Linear(12, 12), Attention(12, 3, fused=False)), features),
        "encoder layer": (layer, features),
        "transformer": (nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), features),
        "tokens": (Tokens(), torch.randn(2, 3, 8, 8)),
        "head norms": (nn.Sequential(nn.Linear(3, 6), HeadNorms(6), nn.Linear(6, 2)), torch.randn(2, 5, 3)),
        "einsum": (HeadsInEinsum(), torch.randn(2, 5, 6)),
        "relative bias": (RelativeBias(), torch.randn(2, 6, 3)),
        "windows": (Windows(), torch.randn(2, 1, 8, 8)),
        "perceiver": (Perceiver(), torch.randn(2, 4, 3)),
        "seeds": (Seeds(), torch.randn(2, 5, 3)),
        "prefixed": (Prefixed(), torch.randn(2, 5, 3)),
        "translation": (Translation(), (torch.randint(5, (2, 4)), torch.randint(5, (2, 3)))),
    }


def _convolutional() -> dict[str, tuple[nn.Module, Any]]:
    group_norm = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 3, 1))
    two_inputs = (torch.randn(2, 2, 6, 6), torch.randn(2, 3))
    return {
        "residual": (Residual(), torch.randn(2, 2, 8, 8)),
        "grouped": (Grouped(), torch.randn(2, 4, 8, 8)),
        "shuffled": (Shuffled(), torch.randn(2, 1, 4, 4)),
        "group norm": (group_norm, torch.randn(2, 2, 5, 5)),
        "conv1d": (nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU(), nn.Conv1d(3, 2, 3)), torch.randn(2, 2, 16)),
        "conv3d": (
            nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv3d(3, 2, 1)),
            torch.randn(2, 2, 4, 4, 4),
        ),
        "unet": (UNet(), torch.randn(2, 1, 8, 8)),
        "resnext": (Aggregated(), torch.randn(2, 2, 6, 6)),
        "mbconv": (InvertedBottleneck(), torch.randn(2, 2, 8, 8)),
        "conformer": (ConformerConvolution(), torch.randn(2, 7, 3)),
        "densenet": (DenseBlock(), torch.randn(2, 2, 6, 6)),
        "film": (Modulated(nn.Identity()), two_inputs),
        "adain": (Modulated(nn.InstanceNorm2d(4)), two_inputs),
    }


def _dense() -> dict[str, tuple[nn.Module, Any]]:
    return {
        "deep sets": (DeepSets(), torch.randn(2, 6, 3)),
        "triplane": (Triplane(), torch.rand(7, 3)),
        "gated": (Gated(), torch.randn(2, 4)),
        "shared": (Shared(), torch.randn(2, 5, 3)),
        "overlapping": (Overlapping(), torch.randn(2, 3)),
        "siren": (Siren(), torch.randn(4, 2)),
        "vae": (VariationalAutoencoder(), torch.randn(2, 5)),
        "tied autoencoder": (TiedAutoencoder(), torch.randn(2, 5)),
        "realnvp": (Coupling(), torch.randn(2, 4)),
        "kan": (nn.Sequential(Splines(3, 4), Splines(4, 2)), torch.randn(2, 3)),
        "lora": (LowRank(), torch.randn(2, 3)),
        "repeated": (Repeated(), torch.randn(2, 3)),
        "experts": (Experts(), torch.randn(4, 2)),
        "dynamic": (Dynamic(), ({"features": torch.randn(4, 3), "class": torch.randint(4, (4,))},)),
        "complex": (Complex(), torch.randn(2, 3)),
    }


def _recurrent() -> dict[str, tuple[nn.Module, Any]]:
    return {
        "lstm": (Recurrent(nn.LSTM, num_layers=2, bidirectional=True), torch.randn(2, 4, 3)),
        "projected lstm": (Recurrent(nn.LSTM, proj_size=2), torch.randn(2, 4, 3)),
        "gru": (Recurrent(nn.GRU), torch.randn(2, 4, 3)),
        "rnn": (Recurrent(nn.RNN, nonlinearity="relu"), torch.randn(2, 4, 3)),
        "states": (States(), torch.randn(2, 5, 3)),
        "encoder decoder": (EncoderDecoder(), torch.randn(5, 3)),
        "cells": (Cells(), torch.randn(2, 3, 3)),
    }


def _algebra() -> dict[str, tuple[nn.Module, Any]]:
    bags = nn.Sequential(nn.EmbeddingBag(9, 5, padding_idx=0), nn.ReLU(), nn.Linear(5, 2))
    return {
        "standardised": (Standardised(), torch.randn(2, 4, 3)),
        "regions": (Regions(), torch.randn(2, 3)),
        "bags": (bags, torch.randint(9, (2, 6))),
        "dueling": (Dueling(), torch.randn(2, 2, 5)),
        "selective": (Selective(), torch.randn(2, 3, 4)),
        "mixture": (Mixture(), torch.randn(2, 3, 6)),
        "generator": (Generator(), torch.randn(2, 5)),
        "repeated channels": (RepeatedChannels(), torch.randn(2, 2, 5)),
        "mirrored": (Mirrored(), torch.randn(2, 3)),
    }


def _told_apart() -> dict[str, tuple[nn.Module, Any]]:
    return {
        "sinusoidal": (Sinusoidal(), torch.randn(2, 5, 3)),
        "rotary": (Rotary(), torch.randn(2, 5, 3)),
        "parts": (Parts(), torch.randn(2, 3)),
        "normalised": (Normalised(), torch.randn(2, 5, 3)),
        "mixer": (Mixer(), torch.randn(2, 5, 3)),
        "equilibrium": (Equilibrium(), torch.randn(2, 2)),
    }
