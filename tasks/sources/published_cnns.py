"""Zoos of CNNs that others published: Unterthiner's small ones, the Wild Park."""

from __future__ import annotations

import csv
import gzip
import zlib
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.files import read_checkpoint
from tasks.networks.cnn import describe
from tasks.shards import Networks
from tasks.sources.foreign_files import (
    beside,
    checked,
    field,
    listed,
    number,
    read_split_file,
    rows_of,
    single,
    tensors,
    whole_numbers,
)

FINAL_STEP = 86
"""Epochs after which trainings of the small CNN zoo ended."""
TEST_SHARE = 0.5
TRAIN_SHARE = 0.8
"""Of the rest, as in Zhou et al. 2023, who shuffle all rows before by a list of their
own."""
STRIDE = 2
ZOO_FILES = ("weights.npy", "metrics.csv.gz", "layout.csv")
METRICS = ("step", "test_accuracy", "config.activation")
LAYOUT = ("varname", "start_idx", "end_idx", "shape")
WILD_FIELDS = {
    "channels": 1,
    "kernel_size": 1,
    "stride": 1,
    "padding": 0,
    "residual": -1,
}
"""Of whole numbers, each so large."""


def read_cnn_zoo(source: Path, split: str) -> Iterator[Networks]:
    """Networks of the small CNN zoo at the end of their training, with their test
    accuracies.

    weights.npy: (networks, parameters). metrics.csv.gz: a row for each, with step,
    test_accuracy and config.activation. layout.csv: varname, start_idx, end_idx and
    shape of every parameter; kernels are (height, width, in, out), matrices (in, out).

    Raises ValueError, which names file and field, for what is missing or does not
    match, and for numbers that are not finite.
    """
    path, metrics, layout = (source / name for name in ZOO_FILES)
    weights = read_matrix(path)
    rows = read_table(metrics, METRICS)
    if len(rows) != len(weights):
        expected = f"{len(weights)} rows, as of weights"
        raise ValueError(f"file '{metrics}': expected {expected}; got {len(rows)}")
    steps = [number(metrics, "step", row["step"]) for row in rows]
    accuracies = [
        accuracy(metrics, "test_accuracy", row["test_accuracy"]) for row in rows
    ]
    ended = np.flatnonzero(np.array(steps) == FINAL_STEP).tolist()
    if not ended:
        raise ValueError(
            f"file '{metrics}': step: expected {FINAL_STEP} in some rows; got none"
        )
    chosen = of_split(split, ended)
    for activation in sorted({rows[k]["config.activation"] for k in chosen}):
        own = [k for k in chosen if rows[k]["config.activation"] == activation]
        values = torch.from_numpy(np.array(weights[own], np.float32))
        params = unpacked(layout, read_table(layout, LAYOUT), values)
        columns = {
            "run": torch.tensor(own),
            "step": torch.full((len(own),), FINAL_STEP),
            "accuracy": torch.tensor(accuracies)[own],
        }
        yield checked(path, small_cnn(layout, params, activation), params, columns)


def read_wild_park(source: Path, split: str) -> Iterator[Networks]:
    """Networks of a split file {train, val, test: {path, score, step}}.

    Paths are relative to its folder. A file holds config, with channels, kernel_size,
    stride, padding, residual and activation of the layers, and model: layers.{0, 1,
    ...} and fc, each with weight and bias.

    Raises ValueError, which names file and field, for what is missing or does not
    match.
    """
    entry = read_split_file(source, split)
    for name, score, step in rows_of(source, entry, ("path", "score", "step")):
        path = beside(source, name)
        values = read_checkpoint(path)
        yield single(
            path,
            wild_cnn(path, values),
            tensors(path, field(path, values, "model")),
            accuracy=accuracy(source, "score", score),
            step=int(number(source, "step", step, least=0)),
        )


def accuracy(path: Path, name: str, value: Any) -> float:
    """Raises ValueError, which names file and field, for what is no share."""
    return number(path, name, value, least=0, most=1)


def wild_cnn(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a Wild Park network; a residual of -1 is none."""
    config = {
        key: whole_numbers(
            path, f"config.{key}", field(path, values, "config", key), least
        )
        for key, least in WILD_FIELDS.items()
    }
    activations = field(path, values, "config", "activation")
    return describe(
        channels=config["channels"],
        kernels=config["kernel_size"],
        strides=config["stride"],
        activations=listed(path, "config.activation", activations),
        paddings=config["padding"],
        skips=[None if source < 0 else source for source in config["residual"]],
    )


def small_cnn(
    path: Path, params: Mapping[str, Tensor], activation: str
) -> dict[str, Any]:
    """The description of stacked convolutions with these kernels, of stride 2 and not
    padded."""
    # (n, out, in, height, width)
    kernels = [value for value in params.values() if value.dim() == 5]
    if not kernels:
        raise ValueError(
            f"file '{path}': shape: expected kernels of four dimensions; got none"
        )
    layers = len(kernels)
    return describe(
        channels=[
            kernels[0].shape[2],
            *(kernel.shape[1] for kernel in kernels),
        ],
        kernels=[kernel.shape[-1] for kernel in kernels],
        strides=[STRIDE] * layers,
        activations=[activation] * layers,
        paddings=[0] * layers,
    )


def of_split(split: str, rows: Sequence[int]) -> list[int]:
    """Rows of a split: the second half is for test, the first half is shuffled and
    divided."""
    middle = int(TEST_SHARE * len(rows))
    rest = list(rows[:middle])
    Random(0).shuffle(rest)
    cut = int(TRAIN_SHARE * len(rest))
    return {
        "train": rest[:cut],
        "validation": rest[cut:],
        "test": list(rows[middle:]),
    }[split]


def unpacked(
    path: Path, layout: Sequence[Mapping[str, str]], values: Tensor
) -> dict[str, Tensor]:
    """(n, parameters) -> by our names, (n, *shape); the last kernel is of the linear
    layer."""
    found: dict[str, list[Tensor]] = {"kernel:0": [], "bias:0": []}
    for row in layout:
        kind = row["varname"].rpartition("/")[2]
        if kind not in found:
            name = row["varname"]
            raise ValueError(
                f"file '{path}': varname: expected kernel:0 or bias:0; got {name!r}"
            )
        part = place(path, row, values)
        found[kind].append(channels_first(part) if kind == "kernel:0" else part)
    kernels, biases = found.values()
    if len(kernels) != len(biases):
        expected = f"as many kernels as biases, {len(biases)}"
        raise ValueError(
            f"file '{path}': varname: expected {expected}; got {len(kernels)}"
        )
    names = [*(f"layers.{number}" for number in range(len(kernels) - 1)), "fc"]
    params = {}
    for name, kernel, bias in zip(names, kernels, biases, strict=True):
        params |= {f"{name}.weight": kernel, f"{name}.bias": bias}
    return params


def place(path: Path, row: Mapping[str, str], values: Tensor) -> Tensor:
    """What a row of the layout says of (n, parameters): (n, *shape)."""
    try:
        start, end, shape = (literal_eval(row[key]) for key in LAYOUT[1:])
        return values[:, start:end].unflatten(1, shape)
    except (ValueError, SyntaxError, TypeError, RuntimeError):
        told = ", ".join(f"{key} {row[key]!r}" for key in LAYOUT[1:])
        raise ValueError(
            f"file '{path}': expected numbers that agree; got {told}"
        ) from None


def channels_first(kernels: Tensor) -> Tensor:
    """(n, *space, in, out) -> (n, out, in, *space)."""
    return kernels.movedim((-1, -2), (1, 2)).contiguous()


def read_matrix(path: Path) -> np.ndarray:
    """An array file of two dimensions, of which what is used is read.

    Raises ValueError, which names the file, if it is no such file.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"file '{path}': expected an array of numbers; got: {error}"
        ) from None
    is_array = isinstance(found, np.ndarray)
    if not is_array or found.ndim != 2 or found.dtype.kind != "f":
        got = f"{found.dtype} {found.shape}" if is_array else "several arrays"
        raise ValueError(
            f"file '{path}': expected numbers (networks, parameters); got {got}"
        )
    return found


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, packed or not.

    Raises ValueError, which names file and column, if one is missing.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"file '{path}': expected a table; got: {error}") from None
    for column in columns:
        if not rows or rows[0].get(column) is None:
            raise ValueError(
                f"file '{path}': {column}: expected a column of this name; got none"
            )
    return rows
