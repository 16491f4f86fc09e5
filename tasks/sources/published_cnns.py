"""Reads published zoos of CNNs: Unterthiner et al. 2020, and Kofinas et al. 2024."""

import csv
import gzip
import zlib
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import prefixed_errors
from tasks.networks.cnn import cnn_description
from tasks.shards import Networks
from tasks.sources.foreign_files import (
    check_list,
    check_tensors,
    checked_networks,
    get_field,
    parse_number,
    read_files,
    read_split_file,
)

FINAL_STEP = 86
"""Epochs of the training runs of the small CNN zoo."""
TEST_SHARE = 0.5
TRAIN_SHARE = 0.8
"""Share of training in the first half, as in Zhou et al. 2023, who first shuffle all
rows by a list."""
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
"""Fields of integers, with their minimum."""


def read_cnn_zoo(source: Path, split: str) -> Iterator[Networks]:
    """Networks of the small CNN zoo at the end of their training, with test accuracies.

    weights.npy: (networks, parameters).
    metrics.csv.gz: a row per network, with step, test_accuracy and config.activation.
    layout.csv: varname, start_idx, end_idx and shape of every parameter; kernels are
    (height, width, in, out), matrices (in, out).

    Raises ValueError, which names file and field, for missing, inconsistent or
    non-finite values.
    """
    path, metrics, layout = (source / name for name in ZOO_FILES)
    weights = read_matrix(path)
    rows = read_table(metrics, METRICS)
    with prefixed_errors(f"file '{metrics}'"):
        if len(rows) != len(weights):
            raise ValueError(
                f"expected {len(weights)} rows, as of weights; got {len(rows)}"
            )
        steps = [parse_number("step", row["step"]) for row in rows]
        accuracies = [
            parse_number("test_accuracy", row["test_accuracy"], 0, 1) for row in rows
        ]
        final = [number for number, step in enumerate(steps) if step == FINAL_STEP]
        if not final:
            raise ValueError(f"step: expected {FINAL_STEP} in some rows; got none")
    numbers_by_activation: dict[str, list[int]] = {}
    for number in split_rows(split, final):
        activation = rows[number]["config.activation"]
        numbers_by_activation.setdefault(activation, []).append(number)
    parameters = read_table(layout, LAYOUT)
    for activation, numbers in sorted(numbers_by_activation.items()):
        values = torch.from_numpy(np.array(weights[numbers], np.float32))
        with prefixed_errors(f"file '{layout}'"):
            params = unpack_params(parameters, values)
            architecture = small_cnn(params, activation)
        columns = {
            "run": torch.tensor(numbers),
            "step": torch.full((len(numbers),), FINAL_STEP),
            "accuracy": torch.tensor(accuracies)[numbers],
        }
        with prefixed_errors(f"file '{path}'"):
            yield checked_networks(architecture, params, columns)


def read_wild_park(source: Path, split: str) -> Iterator[Networks]:
    """Networks of a split file {train, val, test: {path, score, step}}.

    Paths are relative to its folder. Each file has config, with channels, kernel_size,
    stride, padding, residual and activation of the layers, and model, with weight and
    bias of layers.{0, 1, ...} and fc.

    Raises ValueError, which names file and field, for missing or inconsistent values.
    """

    def parse(values: dict[str, Any], columns: dict[str, float]) -> tuple:
        return wild_cnn(values), check_tensors(get_field(values, "model")), columns

    files = []
    for path, score, step in read_split_file(source, split, "score", "step"):
        with prefixed_errors(f"file '{source}'"):
            accuracy = parse_number("score", score, 0, 1)
            step = int(parse_number("step", step, minimum=0))
        files.append((path, {"accuracy": accuracy, "step": step}))
    return read_files(files, parse)


def wild_cnn(values: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a Wild Park network; its residual is -1 for no skip."""
    entries = {
        key: check_list(f"config.{key}", get_field(values, "config", key))
        for key in (*WILD_FIELDS, "activation")
    }
    for key, minimum in WILD_FIELDS.items():
        parse = partial(parse_number, f"config.{key}", minimum=minimum)
        entries[key] = [int(parse(value)) for value in entries[key]]
    return cnn_description(
        channels=entries["channels"],
        kernels=entries["kernel_size"],
        strides=entries["stride"],
        activations=entries["activation"],
        paddings=entries["padding"],
        skips=[None if source < 0 else source for source in entries["residual"]],
    )


def small_cnn(params: Mapping[str, Tensor], activation: str) -> dict[str, Any]:
    """The description of a CNN of stride 2 without padding, from stacked parameters."""
    # (n, out, in, height, width)
    kernels = [value for value in params.values() if value.dim() == 5]
    if not kernels:
        raise ValueError("shape: expected kernels of four dimensions; got none")
    layers = len(kernels)
    return cnn_description(
        channels=[kernels[0].shape[2], *(kernel.shape[1] for kernel in kernels)],
        kernels=[kernel.shape[-1] for kernel in kernels],
        strides=[STRIDE] * layers,
        activations=[activation] * layers,
        paddings=[0] * layers,
    )


def split_rows(split: str, rows: Sequence[int]) -> list[int]:
    """Rows of a split: the second half is for test, the first half is shuffled and
    divided."""
    middle = int(TEST_SHARE * len(rows))
    if split == "test":
        return list(rows[middle:])
    rest = list(rows[:middle])
    Random(0).shuffle(rest)
    cut = int(TRAIN_SHARE * len(rest))
    return rest[:cut] if split == "train" else rest[cut:]


def unpack_params(
    layout: Sequence[Mapping[str, str]], values: Tensor
) -> dict[str, Tensor]:
    """(n, parameters) -> (n, *shape) by our names; the last kernel is the linear
    layer's."""
    kernels, biases = [], []
    for row in layout:
        value = layout_slice(row, values)
        match row["varname"].rpartition("/")[2]:
            case "kernel:0":
                # (n, *space, in, out) -> (n, out, in, *space)
                kernels.append(value.movedim((-1, -2), (1, 2)).contiguous())
            case "bias:0":
                biases.append(value)
            case _:
                got = repr(row["varname"])
                raise ValueError(f"varname: expected kernel:0 or bias:0; got {got}")
    if len(kernels) != len(biases):
        raise ValueError(
            f"varname: expected as many kernels as biases, {len(biases)}; "
            f"got {len(kernels)}"
        )
    names = [*(f"layers.{number}" for number in range(len(kernels) - 1)), "fc"]
    params = {}
    for name, kernel, bias in zip(names, kernels, biases, strict=True):
        params |= {f"{name}.weight": kernel, f"{name}.bias": bias}
    return params


def layout_slice(row: Mapping[str, str], values: Tensor) -> Tensor:
    """The parameter of a row of the layout, (n, parameters) -> (n, *shape)."""
    try:
        start, end, shape = (literal_eval(row[key]) for key in LAYOUT[1:])
        return values[:, start:end].unflatten(1, shape)
    except (ValueError, SyntaxError, TypeError, RuntimeError):
        got = ", ".join(f"{key} {row[key]!r}" for key in LAYOUT[1:])
        raise ValueError(f"expected numbers that agree; got {got}") from None


def read_matrix(path: Path) -> np.ndarray:
    """A memory-mapped array file of two dimensions. Raises ValueError, which names the
    file, for other files."""
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"file '{path}': expected an array of numbers; got: {error}"
        ) from None
    is_array = isinstance(matrix, np.ndarray)
    if not is_array or matrix.ndim != 2 or matrix.dtype.kind != "f":
        got = f"{matrix.dtype} {matrix.shape}" if is_array else "several arrays"
        raise ValueError(
            f"file '{path}': expected numbers (networks, parameters); got {got}"
        )
    return matrix


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, which may be gzipped. Raises ValueError, which names file and
    column, if one is missing."""
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
