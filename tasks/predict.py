"""How good a network is:
`python -m tasks.predict --data data/zoo-small --folder runs/p --model statnn`.

Trains a model to predict test accuracy from parameters (Unterthiner et al. 2020;
Kofinas et al. 2024, section 4.3; Lim et al. 2024, section 5.1) on a folder of
`tasks.zoo train`, whose splits are of runs. Writes what `tasks.classify` writes, and
`predicted.png`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from harness import cli
from harness.distributed import Ranks
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.models.base import NetworkModel
from tasks.networks.architectures import Stack
from tasks.networks.collection import Collection, read_collection
from tasks.shards import SPLITS, check_column


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of a prediction."""

    widest: int | None = None
    """Train on networks none of whose layers has more neurons, test on the others."""


class Prediction(NetworkTask[Config]):
    """Cross-entropy between accuracies; the score is Kendall's tau."""

    model: NetworkModel

    def __init__(self, config: Config, ranks: Ranks = Ranks()):  # noqa: B008
        super().__init__(config, ranks)
        self.data = {split: self._read(split) for split in SPLITS}
        self.model = self.make_model(list(self.data["train"].stacks), d_out=1)

    def loss(self, step: int) -> Tensor:
        training, train = self.config.training, self.data["train"]
        own = self.share(train.batch(training.batch, seed=training.seed, step=step))
        logits = train.said(self.read, own).squeeze(-1)
        return binary_cross_entropy_with_logits(
            logits, train.columns["accuracy"][own].float()
        )

    def read(self, stacks: Sequence[Stack]) -> Tensor:
        """What the model says of networks, (n, 1); not compiled outside of training,
        where batches differ."""
        stacks = [self.prepared(stack) for stack in stacks]
        if self.config.compiled and self.model.training:
            return self.training_outputs(*stacks)
        return self.model.forward_mixed(stacks)

    def score(self) -> float:
        data = self.data["validation"]
        return tau(self.predicted(data), data.columns["accuracy"])

    def predicted(self, data: Collection) -> Tensor:
        """Accuracies of all networks, (n,)."""
        pieces = torch.arange(len(data)).split(EVALUATION_BATCH)
        logits = [data.said(self.read, piece) for piece in pieces]
        return torch.cat(logits).squeeze(-1).sigmoid()

    def results(self) -> Mapping[str, float]:
        data = self.data["test"]
        predicted = self.predicted(data)
        true = data.columns["accuracy"]
        draw(Path(self.config.folder, "predicted.png"), predicted, true)
        return {"tau": tau(predicted, true), "r2": r2(predicted, true)}

    def _read(self, split: str) -> Collection:
        widest = self.config.widest
        data = read_collection(self.config.data, split, self.config.skip_damaged)
        check_column(self.config.data, data.columns, "accuracy", 0, 1)
        if widest is not None:
            is_wanted = is_wide if split == "test" else is_narrow
            data = data.where(lambda stack: is_wanted(stack, widest))
            if not data.stacks:
                side = f"networks on their side of {widest}"
                raise ValueError(f"widest: split '{split}': expected {side}; got none")
        return data.thinned(self.config.limit) if split == "train" else data


def is_narrow(stack: Stack, widest: int) -> bool:
    """Whether no hidden layer has more neurons."""
    groups = stack.architecture.graph.groups
    return all(group.size <= widest for group in groups if group.role == "hidden")


def is_wide(stack: Stack, widest: int) -> bool:
    return not is_narrow(stack, widest)


def tau(predicted: Tensor, true: Tensor) -> float:
    """Kendall's rank correlation; 0 where all predictions are the same, nan where one
    is."""
    if predicted.isnan().any():
        return nan
    found: Any = kendalltau(predicted.numpy(), true.numpy())
    return 0.0 if isnan(found.statistic) else float(found.statistic)


def r2(predicted: Tensor, true: Tensor) -> float:
    """The share of the variance that is explained."""
    unexplained = (predicted - true).square().mean()
    variance = (true - true.mean()).square().mean()
    return 1 - (unexplained / variance).item()


def draw(path: Path, predicted: Tensor, true: Tensor) -> None:
    """Predicted against true accuracies."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.8")
    axes.scatter(100 * true, 100 * predicted, s=6, alpha=0.5)
    top = 100 * max(true.max().item(), predicted.nan_to_num().max().item()) + 2
    axes.set(
        xlabel="accuracy, %",
        ylabel="predicted, %",
        xlim=(0, top),
        ylim=(0, top),
    )
    figure.savefig(path, dpi=150)


def run(config: Config) -> None:
    run_task(config, Prediction)


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
