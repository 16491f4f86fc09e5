"""Prediction of test accuracies:
`python -m tasks.predict --data data/zoo-small --folder runs/p --model statnn`.

Trains a model to predict the test accuracy of networks from their parameters
(Unterthiner et al. 2020; Kofinas et al. 2024, section 4.3; Lim et al. 2024, section
5.1), on a folder of `tasks.zoo train`, whose splits are of runs. Writes what
`tasks.classify` writes, and `predicted.png`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from harness import cli
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.models.base import NetworkModel
from tasks.networks.architectures import NetworkStack
from tasks.networks.network_dataset import NetworkDataset
from tasks.shards import SPLITS, check_column, read_split


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of a prediction task."""

    widest: int | None = None
    """Train on networks with up to this many neurons in every layer, test on the
    others."""


class Prediction(NetworkTask[Config]):
    """The loss is the cross-entropy between accuracies, the score Kendall's tau."""

    model: NetworkModel

    def build(self, config: Config) -> None:
        self.data = {split: self._read(split) for split in SPLITS}
        self.model = self.make_model(list(self.data["train"].stacks), d_out=1)

    def loss(self, step: int) -> Tensor:
        training, train = self.config.training, self.data["train"]
        index = train.batch_indices(training.batch, seed=training.seed, step=step)
        logits = train.apply(self.logits, index).squeeze(-1)
        accuracies = train.columns["accuracy"][index].float()
        return binary_cross_entropy_with_logits(logits, accuracies)

    def logits(self, stacks: Sequence[NetworkStack]) -> Tensor:
        """(n, 1). Not compiled outside of training, where batches differ in size."""
        stacks = list(map(self.prepared, stacks))
        if self.config.compiled and self.model.training:
            return self.training_outputs(*stacks)
        return self.model.forward_mixed(stacks)

    def predicted(self, data: NetworkDataset) -> Tensor:
        """Predicted accuracies of all networks, (n,)."""
        batches = torch.arange(len(data)).split(EVALUATION_BATCH)
        logits = torch.cat([data.apply(self.logits, index) for index in batches])
        return logits.squeeze(-1).sigmoid()

    def score(self) -> float:
        data = self.data["validation"]
        return tau(self.predicted(data), data.columns["accuracy"])

    def results(self) -> Mapping[str, float]:
        data = self.data["test"]
        predicted = self.predicted(data)
        true = data.columns["accuracy"]
        draw(Path(self.config.folder, "predicted.png"), predicted, true)
        return {"tau": tau(predicted, true), "r2": r2(predicted, true)}

    def _read(self, split: str) -> NetworkDataset:
        folder, widest = self.config.data, self.config.widest
        data = NetworkDataset.from_groups(read_split(Path(folder), split))
        check_column(folder, data.columns, "accuracy", 1)
        if widest is not None:
            wants_narrow = split != "test"
            data = data.filter(lambda stack: is_narrow(stack, widest) == wants_narrow)
            if not data.stacks:
                kind = "narrow" if wants_narrow else "wide"
                raise ValueError(
                    f"widest: expected {kind} networks in split '{split}' for a limit "
                    f"of {widest}; got none"
                )
        return data.subset(self.config.limit) if split == "train" else data


def is_narrow(stack: NetworkStack, widest: int) -> bool:
    """Whether no hidden layer has more than `widest` neurons."""
    groups = stack.architecture.graph.groups
    return all(group.size <= widest for group in groups if group.role == "hidden")


def tau(predicted: Tensor, true: Tensor) -> float:
    """Kendall's rank correlation; 0 for constant predictions, nan if any is nan."""
    if predicted.isnan().any():
        return nan
    correlation: Any = kendalltau(predicted.numpy(), true.numpy())
    return 0.0 if isnan(correlation.statistic) else float(correlation.statistic)


def r2(predicted: Tensor, true: Tensor) -> float:
    """Coefficient of determination."""
    unexplained = (predicted - true).square().mean()
    variance = (true - true.mean()).square().mean()
    return 1 - (unexplained / variance).item()


def draw(path: Path, predicted: Tensor, true: Tensor) -> None:
    """Plots predicted over true accuracies."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.8")
    axes.scatter(100 * true, 100 * predicted, s=6, alpha=0.5)
    top = 100 * max(true.max().item(), predicted.nan_to_num().max().item()) + 2
    axes.set(xlabel="accuracy, %", ylabel="predicted, %")
    axes.set(xlim=(0, top), ylim=(0, top))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    cli.main(Config, partial(run_task, make=Prediction), __doc__)
