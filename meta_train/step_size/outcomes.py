"""The measured outcomes of random trainings, and their features, as arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.files import append_line, read_lines
from meta_train.step_size.collect import MULTIPLIERS, SEEDS, SLOPES
from meta_train.step_size.tasks import EXACT
from meta_train.step_size.trainings import Training
from ngopt import NGOptimizer
from ngopt.learned_step.features import FEATURES, NetworkFeatures
from ngopt.soap.config import BoundMultiplier, Measured, Network
from ngopt.soap.soap import Soap

# Shares of the first loss below which differences do not count: usually, and of what
# can be fitted exactly.
FLOOR, FLOOR_OF_EXACT = 2e-3, 1e-8
MAX_LOG_LOSS = 1.0  # largest counted log of a loss over the first one
MAX_GAIN = 1.0  # largest counted gain
HALF, BASE, DOUBLE = (f"{factor:g}" for factor in MULTIPLIERS)

GROUPS: dict[str, tuple[str, ...]] = {
    "dense": ("mlp", "few", "linear"),
    "images, sounds, distances": ("function",),
    "equations": ("solver",),
    "games": ("game",),
    "tables": ("factors", "bag"),
    "transformers": ("vit", "gpt"),
    "convolutions": ("cnn", "strided cnn"),
    "autoencoders": ("autoencoder",),
    "deep": ("deep mlp",),
    "gates": ("gated",),
}
"""Families that are left out together."""


@dataclass(frozen=True)
class Data:
    """Outcomes of n trainings and d features.

    gains: falls of log validation loss against the rule's own steps, with half and
    twice the steps, and with slopes of -1 and 1; (n, 4, 2 seeds). x: features,
    (n, 2 graphs, 2 seeds, d). Graphs: of named parameters, without names.
    """

    trainings: list[Training]
    gains: np.ndarray
    x: np.ndarray

    @cached_property
    def kinds(self) -> np.ndarray:
        """(n,)"""
        return np.array([training.kind for training in self.trainings])

    @cached_property
    def steps(self) -> np.ndarray:
        """(n,)"""
        return np.array([training.steps for training in self.trainings])

    @cached_property
    def groups(self) -> np.ndarray:
        """Names in `GROUPS`, (n,)"""
        names = {family: name for name in GROUPS for family in GROUPS[name]}
        return np.array([names[training.family] for training in self.trainings])

    def at(self, chosen: np.ndarray) -> "Data":
        """The trainings with these indices, or where this is true."""
        trainings = list(np.array(self.trainings, dtype=object)[chosen])
        return Data(trainings, self.gains[chosen], self.x[chosen])


def read_data(folder: Path) -> Data:
    """The files outcomes*.jsonl* of a folder. Raises ValueError if there are none."""
    paths = sorted(folder.glob("outcomes*.jsonl*"))
    records = {record["seed"]: record for record in read_lines(paths)}
    if not records:
        raise ValueError(
            f"folder: expected outcomes*.jsonl in '{folder}'; got none. "
            f"Run meta_train.step_size.collect first."
        )
    fields = Training.__dataclass_fields__
    trainings = []
    for record in records.values():
        trainings.append(Training(**{name: record[name] for name in fields}))
    gains = np.stack([gains_of(record) for record in records.values()])
    x = read_features(trainings, folder / "features.jsonl")
    return Data(trainings, gains, x)


def gains_of(record: Mapping[str, Any]) -> np.ndarray:
    """(4, 2), see `Data`; 0 for networks without a slope."""
    logs = log_losses(record)
    falls = logs[record["variants"].index(BASE)] - logs
    rows = dict(zip(record["variants"], falls, strict=True))
    none = np.zeros(len(SEEDS))
    changes = HALF, DOUBLE, *SLOPES
    gains = np.stack([rows.get(name, none) for name in changes])
    return gains.clip(-MAX_GAIN, MAX_GAIN)


def log_losses(record: Mapping[str, Any]) -> np.ndarray:
    """Logs of losses (variants, 2), between a floor and a ceiling relative to the
    first."""
    first = np.array(record["first"], dtype=float)  # None becomes nan
    validation = np.array(record["validation"], dtype=float)
    first = np.nan_to_num(np.abs(first), nan=1.0) + 1e-12
    ratio = np.nan_to_num(validation, nan=np.inf) / first
    floor = FLOOR_OF_EXACT if record["task_name"] in EXACT else FLOOR
    logs = np.log(ratio.clip(0) + floor)
    return np.minimum(logs, MAX_LOG_LOSS) + np.log(first)


def gains_at(predicted: Tensor, gains: Tensor) -> Tensor:
    """Gains (n,) at log2 factors and slopes (n, 2): parabolas through measured ones.

    gains: (n, 4), see `Data`.
    """
    below, above = gains[:, ::2], gains[:, 1::2]
    slope, bend = (above - below) / 2, (above + below) / 2
    return (slope * predicted + bend * predicted.square()).sum(1)


def read_features(trainings: Sequence[Training], path: Path) -> np.ndarray:
    """Features (n, 2 graphs, 2 seeds, d). New values are appended to a file."""
    records = read_lines(path.parent.glob(path.name))
    known = {record["seed"]: record["features"] for record in records}
    rows = []
    for training in trainings:
        if training.seed not in known:
            known[training.seed] = features_of(training)
            record = {"seed": training.seed, "features": known[training.seed]}
            append_line(path, record)
        rows.append(known[training.seed])
    return np.array(rows)


def features_of(training: Training) -> list[list[list[float]]]:
    """Features of a training, (2 graphs, 2 seeds, d); those that are not finite are 0.

    They are those that the library reads at the first step.
    """
    rows: list[list[list[float]]] = []
    for is_named in (True, False):
        rows.append([])
        for seed in SEEDS:
            reader = FeatureReader()
            after_first_step(training, seed, Soap(multiplier=reader), is_named)
            rows[-1].append(reader.values.tolist())
    return rows


def after_first_step(
    training: Training, seed: int, rule: Any, is_named: bool = True
) -> NGOptimizer:
    """The optimizer of a training after its first step. rule: of `NGOptimizer`."""
    model, task = training.build(seed), training.task
    chosen = training.indices(seed, 0)
    loss = task.loss(model(task.inputs[chosen]), task.targets[chosen])
    grads = torch.autograd.grad(loss, list(model.parameters()))
    params = model.named_parameters() if is_named else model.parameters()
    opt = NGOptimizer(params, rule=rule, total_steps=training.steps)
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    opt.step()
    return opt


class FeatureReader:
    """A multiplier that multiplies by 1, and keeps the features of a network; zeros of
    a network without matrices."""

    state: ClassVar[Mapping[str, float]] = {}
    values: Tensor

    def bind(self, network: Network) -> BoundMultiplier:
        assert network.total_steps is not None
        read = NetworkFeatures(network, network.total_steps)

        def multiplier(measured: Measured, progress: Any, state: Any) -> Tensor:
            self.values = torch.zeros(len(FEATURES))
            if read.matrices:
                self.values = read(measured).nan_to_num(0.0, 0.0, 0.0)
            return torch.ones(len(network.shapes))

        return multiplier
