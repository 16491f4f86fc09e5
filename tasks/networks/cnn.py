"""Convolutional networks that are data: of one shape, wild ones with skips, and with
norms."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.networks.classifier import Classifier, NeuronDropout, activation_of

NORMS = ("batch", "group")
GROUPS = 2
"""Of a GroupNorm."""


class CNN(Classifier):
    """Convolutions, the mean over space and a linear layer.

    channels: of the images, then of every layer.
    kernels, strides, paddings, activations: of every layer.
    skips: for every layer the number of an earlier one, or None. What that one says is
    added
        before the activation, over the first channels that both have (Kofinas et al.
        2024, appendix E), and where strides lie between, at every so many places (He et
        al. 2016, section 4.2, option A).
    norm: of what every convolution gives, "batch" or "group". A BatchNorm has the
    statistics of the
        batch in training and after, so that parameters alone, which the graph has,
        decide what a network does.
    dimensions: 2; or 1, which reads the pixels row after row.
    dropout: share of neurons after every activation, in training.

    Raises ValueError for lists of other lengths, an unknown activation or norm, or a
    skip from no earlier layer.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        paddings: Sequence[int],
        activations: Sequence[str],
        skips: Sequence[int | None],
        norm: str | None = None,
        dimensions: int = 2,
        classes: int = 10,
        dropout: float = 0.0,
    ):
        super().__init__(channels[0])
        count = len(channels) - 1
        lengths = {
            "kernels": len(kernels),
            "strides": len(strides),
            "paddings": len(paddings),
            "activations": len(activations),
            "skips": len(skips),
        }
        for name, length in lengths.items():
            if length != count:
                raise ValueError(
                    f"architecture: {name}: expected {count} entries; got {length}"
                )
        _check_skips(skips)
        self.dimensions = dimensions
        self.strides, self.skips = strides, skips
        self.activations = [activation_of(name) for name in activations]
        convolution = {1: nn.Conv1d, 2: nn.Conv2d}[dimensions]
        sizes = zip(
            channels[:-1], channels[1:], kernels, strides, paddings, strict=True
        )
        self.layers = nn.ModuleList(convolution(*size) for size in sizes)
        if norm is not None:
            self.norms = nn.ModuleList(
                _norm(norm, width, dimensions) for width in channels[1:]
            )
        self.fc = nn.Linear(channels[-1], classes)
        self.norm = norm
        self.drop = NeuronDropout(dropout, axis=1)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """x: (m, channels, height, width), images."""
        found: list[Tensor | None] = [x]
        outputs: list[Tensor] = []
        x = x.flatten(2) if self.dimensions == 1 else x
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if self.norm is None:
                x = self.activated(x, number, outputs)
                found.append(x)
            else:
                found.append(x)
                x = self.activated(self.norms[number](x), number, outputs)
                found.append(x)
                if self.norm == "group":
                    found.append(None)  # the groups
            outputs.append(x)
        return [*found, self.fc(x.flatten(2).mean(2))]

    def activated(self, x: Tensor, number: int, outputs: Sequence[Tensor]) -> Tensor:
        """What a layer says: its own sums, those of a layer before, the activation,
        dropout.

        outputs: of the layers before.
        """
        source = self.skips[number]
        if source is not None:
            stride = prod(self.strides[source + 1 : number + 1])
            x = x + shortcut(outputs[source], stride, x.shape[1])
        return self.drop(self.activations[number](x))


def describe(
    channels: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    activations: Sequence[str],
    paddings: Sequence[int] | None = None,
    skips: Sequence[int | None] | None = None,
    norm: str | None = None,
    dimensions: int = 2,
) -> dict[str, Any]:
    """The description of a `CNN`, for `tasks.networks.architectures`.

    paddings: where none are given, half a kernel. skips: none.
    """
    return {
        "kind": "cnn",
        "channels": list(channels),
        "kernels": list(kernels),
        "strides": list(strides),
        "paddings": [kernel // 2 for kernel in kernels]
        if paddings is None
        else list(paddings),
        "activations": list(activations),
        "skips": [None] * len(kernels) if skips is None else list(skips),
        "norm": norm,
        "dimensions": dimensions,
    }


def shortcut(x: Tensor, stride: int, channels: int) -> Tensor:
    """(m, c, *space) -> (m, channels, *space / stride): the first channels, or zeros
    after them."""
    spaces = x.dim() - 2
    places = x[(..., *[slice(None, None, stride)] * spaces)]
    return F.pad(places, (0, 0) * spaces + (0, channels - x.shape[1]))


def _norm(kind: str, width: int, dimensions: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(GROUPS, width)
    if kind == "batch":
        batch_norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions]
        return batch_norm(width, track_running_stats=False)
    known = ", ".join(NORMS)
    raise ValueError(
        f"architecture: norm: expected one of {known}, or none; got {kind!r}"
    )


def _check_skips(skips: Sequence[int | None]) -> None:
    for number, source in enumerate(skips):
        if source is not None and not 0 <= source < number:
            expected = f"layer {number} to have one from a layer before, or none"
            raise ValueError(f"architecture: skips: expected {expected}; got {source}")
