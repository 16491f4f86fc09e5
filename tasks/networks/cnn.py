"""Convolutional image classifiers, with optional skip connections and norms."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from harness.settings import check_setting
from tasks.networks.input_network import (
    CLASSES,
    Classifier,
    NeuronDropout,
    activation_function,
)

NORMS = ("batch", "group")
NORM_GROUPS = 2
"""Groups of a GroupNorm."""


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Layers of a `CNN`. Lists have one entry per convolution; `channels` has those of
    the images before.

    skips: index of an earlier layer, or None. The output of that layer is added before
    the activation, over the first channels that both have (Kofinas et al. 2024,
    appendix E), subsampled by the strides in between (He et al. 2016, section 4.2,
    option A).
    norm: of the output of every convolution, "batch" or "group". A BatchNorm always has
    the statistics of the batch, since the graph has no running statistics.
    dimensions: 2; or 1, for convolutions over the pixels row after row.

    Raises ValueError for lists of other lengths, or a skip from a layer that is not
    earlier.
    """

    channels: Sequence[int]
    kernels: Sequence[int]
    strides: Sequence[int]
    paddings: Sequence[int]
    activations: Sequence[str]
    skips: Sequence[int | None]
    norm: str | None = None
    dimensions: int = 2

    def __post_init__(self) -> None:
        count = len(self.channels) - 1
        for name in ("kernels", "strides", "paddings", "activations", "skips"):
            length = len(getattr(self, name))
            key = f"architecture: {name}"
            check_setting(length == count, key, f"{count} entries", length)
        for index, source in enumerate(self.skips):
            is_valid = source is None or 0 <= source < index
            expected = f"None or an earlier layer for layer {index}"
            check_setting(is_valid, "architecture: skips", expected, source)


def cnn_description(
    channels: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    activations: Sequence[str],
    **options: Any,
) -> dict[str, Any]:
    """The description of a CNN for `tasks.networks.architectures`.

    options: other fields of `CNNConfig`; by default "same" paddings and no skips.
    """
    paddings = [kernel // 2 for kernel in kernels]
    defaults = {"paddings": paddings, "skips": [None] * len(kernels)}
    config = CNNConfig(
        channels=channels,
        kernels=kernels,
        strides=strides,
        activations=activations,
        **(defaults | options),
    )
    return {"kind": "cnn", **asdict(config)}


class CNN(Classifier):
    """Convolutions, the mean over space and a linear layer.

    dropout: of neurons after every activation. layers: fields of `CNNConfig`.

    Raises ValueError for an unknown activation or norm.
    """

    def __init__(self, dropout: float = 0.0, **layers: Any):
        config = CNNConfig(**layers)
        channels = config.channels
        super().__init__(channels[0])
        self.config = config
        self.activations = list(map(activation_function, config.activations))
        convolution = {1: nn.Conv1d, 2: nn.Conv2d}[config.dimensions]
        self.layers = nn.ModuleList()
        for index, kernel in enumerate(config.kernels):
            stride, padding = config.strides[index], config.paddings[index]
            c_in, c_out = channels[index : index + 2]
            self.layers.append(convolution(c_in, c_out, kernel, stride, padding))
        if config.norm is not None:
            self.norms = nn.ModuleList(
                _norm(config.norm, width, config.dimensions) for width in channels[1:]
            )
        self.fc = nn.Linear(channels[-1], CLASSES)
        self.drop = NeuronDropout(dropout, axis=1)

    def group_activations(self, x: Tensor) -> list[Tensor | None]:
        """x: images (m, channels, height, width)."""
        activations: list[Tensor | None] = [x]
        outputs: list[Tensor] = []
        norm = self.config.norm
        x = x.flatten(2) if self.config.dimensions == 1 else x
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if norm is not None:
                activations.append(x)
                x = self.norms[index](x)
            source = self.config.skips[index]
            if source is not None:
                stride = prod(self.config.strides[source + 1 : index + 1])
                x = x + shortcut(outputs[source], stride, x.shape[1])
            x = self.drop(self.activations[index](x))
            activations.append(x)
            if norm == "group":
                activations.append(None)  # nodes of the GroupNorm's groups
            outputs.append(x)
        return [*activations, self.fc(x.flatten(2).mean(2))]


def shortcut(x: Tensor, stride: int, channels: int) -> Tensor:
    """(m, c, *space) -> (m, channels, *space / stride); channels are cut off, or padded
    with zeros."""
    spaces = x.dim() - 2
    subsampled = x[(..., *[slice(None, None, stride)] * spaces)]
    return F.pad(subsampled, (0, 0) * spaces + (0, channels - x.shape[1]))


def _norm(kind: str, width: int, dimensions: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(NORM_GROUPS, width)
    if kind == "batch":
        batch_norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dimensions]
        return batch_norm(width, track_running_stats=False)
    raise ValueError(
        f"architecture: norm: expected one of {', '.join(NORMS)}, or none; got {kind!r}"
    )
