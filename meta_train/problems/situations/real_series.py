"""Time series that come with the package aeon: speakers, leaves, blood pressure."""

from __future__ import annotations

import csv
from functools import cache

import torch
from torch import Tensor, nn

from meta_train.problems.situations.packaged import packaged
from meta_train.problems.situations.real_tables import divided
from meta_train.problems.supervised import Listed, Splits

FOLDER = "datasets/data"
PRESSURE = "KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv"
SHARES = 0.6, 0.2, 0.2  # of the time: training, validation, test
STRIDE = 4  # values between the beginnings of training windows


def read_ts(text: str) -> tuple[Tensor, Tensor]:
    """Series (n, channels, length) and their labels (n,) int64, of a `.ts` file.

    A line is a series: channels between colons, then the class. Comments begin with
    "#", the header with "@"; the classes are numbered in the header's order.

    Raises ValueError if series have other lengths, or the header names no classes.
    """
    header, _, body = text.partition("@data")
    classes = _classes(header)
    series, labels = [], []
    for line in filter(None, map(str.strip, body.splitlines())):
        *channels, label = line.split(":")
        rows = [[float(value) for value in one.split(",")] for one in channels]
        series.append(torch.tensor(rows))
        labels.append(classes.index(label))
    lengths = {one.shape for one in series}
    if len(lengths) != 1:
        raise ValueError(f"read_ts: expected series of one length; got {len(lengths)}")
    return torch.stack(series), torch.tensor(labels)


def _classes(header: str) -> list[str]:
    for line in header.splitlines():
        if line.lower().startswith("@classlabel"):
            return line.split()[2:]  # behind "true"
    raise ValueError("read_ts: expected a line '@classLabel true ...'; got none")


@cache
def labelled_series(folder: str, name: str) -> Splits:
    """Series of both files of a data set: half train, a quarter validates, one tests.

    The published training files have 200 to 270 series, so both files are divided anew.
    """
    texts = [_text(f"{folder}/{name}_{part}.ts") for part in ("TRAIN", "TEST")]
    series, labels = zip(*map(read_ts, texts), strict=True)
    return divided(torch.cat(series), torch.cat(labels))


@cache
def pressure(length: int, horizon: int) -> Splits:
    """Arterial pressure: `length` values (n, 1, length), and the next (n, horizon).

    Validation is later than training, and test later than both. Divided by the
    training values' standard deviation, with their mean subtracted.
    """
    values = read_column(_text(PRESSURE), "value")
    sizes = [int(share * len(values)) for share in SHARES[:-1]]
    parts = values.split([*sizes, len(values) - sum(sizes)])
    mean, std = parts[0].mean(), parts[0].std()
    strides = STRIDE, horizon, horizon
    return Splits(
        *(
            forecasts((part - mean) / std, length, horizon, stride)
            for part, stride in zip(parts, strides, strict=True)
        )
    )


def read_column(text: str, name: str) -> Tensor:
    """The numbers (n,) of a column of comma-separated values with a header."""
    return torch.tensor([float(row[name]) for row in csv.DictReader(text.splitlines())])


def forecasts(values: Tensor, length: int, horizon: int, stride: int) -> Listed:
    """Windows (n, 1, length) of a series (values,), and what follows (n, horizon)."""
    windows = values.unfold(0, length + horizon, stride)
    return Listed(windows[:, None, :length], windows[:, length:])


def _text(path: str) -> str:
    return packaged("aeon", f"{FOLDER}/{path}").read_text(encoding="utf-8")


class SeriesReader(nn.Module):
    """Recurrent layers over time; a linear layer on their last output."""

    def __init__(
        self, kind: type[nn.GRU] | type[nn.LSTM], channels: int, width: int, out: int
    ):
        super().__init__()
        self.cells = kind(channels, width, batch_first=True)
        self.head = nn.Linear(width, out)

    def forward(self, series: Tensor) -> Tensor:
        """series: (b, channels, length); returns (b, out)"""
        outputs, _ = self.cells(series.mT)
        return self.head(outputs[:, -1])
