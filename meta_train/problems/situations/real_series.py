"""Time series of the package aeon: speakers, leaves, blood pressure."""

import csv
from functools import cache, partial

import torch
from torch import Tensor, nn

from meta_train.problems.networks.convolutional import wave_cnn
from meta_train.problems.networks.sequential import RowRnn
from meta_train.problems.situations.packaged import packaged
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.tables import divided
from meta_train.problems.supervised import Examples, Splits, tensor_examples

FOLDER = "datasets/data"
PRESSURE = "KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv"
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.2  # of the time; the rest is for test
STRIDE = 4  # values between the starts of training windows


def read_ts(text: str) -> tuple[Tensor, Tensor]:
    """Series (n, channels, length) and labels (n,) int64 of the text of a `.ts` file.

    A line has the channels of a series and its class, separated by colons. Classes are
    numbered in the order of the header.

    Raises ValueError if series differ in length, or the header has no classes.
    """
    header, _, body = text.partition("@data")
    marked = [
        line for line in header.splitlines() if line.lower().startswith("@classlabel")
    ]
    if not marked:
        raise ValueError("read_ts: expected a line '@classLabel true ...'; got none")
    classes = marked[0].split()[2:]  # after "true"
    series, labels = [], []
    for line in body.strip().splitlines():
        *channels, label = line.split(":")
        numbers = [list(map(float, channel.split(","))) for channel in channels]
        series.append(torch.tensor(numbers))
        labels.append(classes.index(label))
    lengths = {channels.shape for channels in series}
    if len(lengths) != 1:
        raise ValueError(f"read_ts: expected series of one length; got {len(lengths)}")
    return torch.stack(series), torch.tensor(labels)


@cache
def labelled_series(folder: str, name: str) -> Splits:
    """Series and labels of a data set.

    The published training files have only 200 to 270 series, so the series of the
    training and test files are divided anew.
    """
    series, labels = read_ts(_text(f"{folder}/{name}_TRAIN.ts"))
    more_series, more_labels = read_ts(_text(f"{folder}/{name}_TEST.ts"))
    return divided(torch.cat([series, more_series]), torch.cat([labels, more_labels]))


@cache
def pressure(length: int, horizon: int) -> Splits:
    """Arterial pressure (n, 1, length), to predict the next values (n, horizon).

    Validation data are later than training data, and test data later than both. Values
    are standardised by the mean and standard deviation of the training data.
    """
    values = read_column(_text(PRESSURE), "value")
    train_size = int(TRAIN_SHARE * len(values))
    validation_size = int(VALIDATION_SHARE * len(values))
    train = values[:train_size]
    values = (values - train.mean()) / train.std()
    train, validation, test = values.tensor_split(
        [train_size, train_size + validation_size]
    )
    return Splits(
        forecasts(train, length, horizon, STRIDE),
        forecasts(validation, length, horizon, horizon),
        forecasts(test, length, horizon, horizon),
    )


def read_column(text: str, name: str) -> Tensor:
    """The numbers (n,) of a column of comma-separated values with a header."""
    rows = csv.DictReader(text.splitlines())
    return torch.tensor([float(row[name]) for row in rows])


def forecasts(values: Tensor, length: int, horizon: int, stride: int) -> Examples:
    """Windows (n, 1, length) of a series, and the values after them (n, horizon)."""
    windows = values.unfold(0, length + horizon, stride)
    return tensor_examples(windows[:, None, :length], windows[:, length:])


def _text(path: str) -> str:
    return packaged("aeon", f"{FOLDER}/{path}").read_text(encoding="utf-8")


class SeriesRnn(RowRnn):
    """Recurrent layers over time and a linear layer on their last output."""

    def forward(self, series: Tensor) -> Tensor:
        """series: (b, channels, length); returns (b, out)"""
        return super().forward(series.mT[:, None])


VOWELS = partial(labelled_series, "JapaneseVowels", "JapaneseVowels_eq")
LEAVES = partial(labelled_series, "OSULeaf", "OSULeaf")
NEXT_PRESSURES = partial(pressure, 48, 16)

PROBLEMS = {
    "real-vowels-gru": classify(VOWELS, 16, 300, SeriesRnn, nn.GRU, 12, 64, 9),
    "real-leaves-cnn": classify(LEAVES, 16, 400, wave_cnn, (1, 16, 24, 32), 6),
    "real-pressure-lstm": regress(
        NEXT_PRESSURES, 32, 400, SeriesRnn, nn.LSTM, 1, 48, 16
    ),
}
