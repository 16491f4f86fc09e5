"""The interface of problems, and the metrics that they report."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Metrics(NamedTuple):
    """Mean loss over a split, and accuracy (a fraction) where the problem has one."""

    loss: float
    accuracy: float | None


def mean_metrics(runs: Sequence[Metrics]) -> Metrics:
    """Means over several runs of one problem."""
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    accuracy = fmean(accuracies) if accuracies else None
    return Metrics(fmean(run.loss for run in runs), accuracy)


class Problem(Protocol):
    """A network and its training data. Everything random follows from the seeds."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int:
        """The horizon: the default number of updates of a run."""
        ...

    def init(self, seed: int) -> nn.Module:
        """A freshly initialised optimizee in training mode."""
        ...

    def batch(self, seed: int, step: int) -> Any:
        """The training batch of one inner step."""
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss on a batch, ().

        Dropout may draw from torch's generator, and buffers may change.
        """
        ...

    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        """Metrics of a model in evaluation mode on "validation" or "test".

        limit: evaluate only this many examples, the first of the split.
        """
        ...
