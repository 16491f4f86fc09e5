"""Reads published zoos of CNNs: Unterthiner et al. 2020, and Kofinas et al. 2024."""

from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tasks.networks.cnn import cnn_description
from tasks.shards import Networks
from tasks.sources.foreign_files import (
    checked_networks,
    file_errors,
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
METRICS = ["step", "test_accuracy", "config.activation"]
LAYOUT = ["varname", "start_idx", "end_idx", "shape"]


def read_cnn_zoo(source: Path, split: str) -> Iterator[Networks]:
    """Networks of the small CNN zoo at the end of their training, with test accuracies.
    Raises ValueError, which names the file, for missing, inconsistent or non-finite
    values."""
    path, metrics, layout = (source / name for name in ZOO_FILES)
    with file_errors(path):
        weights = np.load(path, mmap_mode="r", allow_pickle=False)
        if weights.ndim != 2 or weights.dtype.kind != "f":
            raise ValueError(
                "expected numbers (networks, parameters); "
                f"got {weights.dtype} {weights.shape}"
            )
    with file_errors(metrics):
        table = pd.read_csv(metrics, usecols=METRICS)
        if len(table) != len(weights):
            raise ValueError(
                f"expected {len(weights)} rows, as of weights; got {len(table)}"
            )
        final = np.flatnonzero(table["step"] == FINAL_STEP).tolist()
        if not final:
            raise ValueError(f"step: expected {FINAL_STEP} in some rows; got none")
        for accuracy in table["test_accuracy"]:
            parse_number("test_accuracy", accuracy, 0, 1)
    with file_errors(layout):
        parameters = pd.read_csv(layout, usecols=LAYOUT).reindex(columns=LAYOUT)
    chosen = table.loc[split_rows(split, final)]
    for activation, rows in chosen.groupby("config.activation", dropna=False):
        values = torch.from_numpy(np.array(weights[rows.index], np.float32))
        with file_errors(layout):
            params = unpack_params(parameters, values)
            architecture = small_cnn(params, str(activation))
        columns = {
            "run": torch.tensor(rows.index),
            "step": torch.full((len(rows),), FINAL_STEP),
            "accuracy": torch.tensor(rows["test_accuracy"].tolist()),
        }
        with file_errors(path):
            networks = checked_networks(architecture, params, columns)
        yield networks


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


def unpack_params(layout: pd.DataFrame, values: Tensor) -> dict[str, Tensor]:
    """(n, parameters) -> (n, *shape) by our names; the last kernel is the linear
    layer's."""
    kernels, biases = [], []
    for name, start, end, shape in layout.itertuples(index=False):
        value = values[:, start:end].unflatten(1, literal_eval(shape))
        if name.endswith("/kernel:0"):
            # (n, *space, in, out) -> (n, out, in, *space)
            kernels.append(value.movedim((-1, -2), (1, 2)).contiguous())
        elif name.endswith("/bias:0"):
            biases.append(value)
    if not len(kernels) == len(biases) == len(layout) / 2:
        got = ", ".join(layout["varname"])
        raise ValueError(f"varname: expected kernel:0 and bias:0 of layers; got {got}")
    names = [*(f"layers.{number}" for number in range(len(kernels) - 1)), "fc"]
    params = {}
    for name, kernel, bias in zip(names, kernels, biases, strict=True):
        params |= {f"{name}.weight": kernel, f"{name}.bias": bias}
    return params


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


def read_wild_park(source: Path, split: str) -> Iterator[Networks]:
    """Networks of a split file, with test accuracies. Raises ValueError, which names
    the file, for missing or inconsistent values."""

    def parse(values: dict[str, Any], accuracy: float, step: int) -> tuple:
        def integers(key: str) -> list[int]:
            return list(map(int, values["config"][key]))

        architecture = cnn_description(
            channels=integers("channels"),
            kernels=integers("kernel_size"),
            strides=integers("stride"),
            activations=list(values["config"]["activation"]),
            paddings=integers("padding"),
            skips=[None if layer < 0 else layer for layer in integers("residual")],
        )
        return architecture, values["model"], {"accuracy": accuracy, "step": step}

    table = read_split_file(source, split)
    with file_errors(source):
        accuracies = [parse_number("score", value, 0, 1) for value in table["score"]]
        steps = [int(parse_number("step", value)) for value in table["step"]]
    return read_files(zip(table["path"], accuracies, steps, strict=True), parse)
