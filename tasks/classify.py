"""What an image network shows: `python -m tasks.classify --data data/inr-mnist --folder
runs/m
--probes 16`.

Trains a model to tell the class of the image that a network stands for, from the
network alone (Kofinas et al. 2024, section 4.1), on a folder of `tasks.inr fit`. Writes
into its folder a checkpoint, from which the same command resumes, TensorBoard events,
`result.json` and, of learned probes, `probes.png`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import cli
from harness.distributed import Ranks
from tasks.learning.image_networks import CLASSES, read_image_networks
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.networks.augment import moved


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of a classification."""

    augment: bool = True
    """Turn, scale and shift the images of training networks."""


class Classification(NetworkTask[Config]):
    """Cross-entropy of the classes; the score is the share of them that is right."""

    def __init__(self, config: Config, ranks: Ranks = Ranks()):  # noqa: B008
        super().__init__(config, ranks)
        self.data = read_image_networks(config)
        self.model = self.make_model([self.data["train"].stack], CLASSES)

    def loss(self, step: int) -> Tensor:
        train = self.data["train"]
        own = self.batch(len(train.labels), step)
        stack = train.stack.select(own)
        if self.config.augment:
            stack = moved(stack, degrees=15, scale=0.1, shift=0.1)
        return cross_entropy(
            self.training_outputs(self.prepared(stack)), train.labels[own]
        )

    def score(self) -> float:
        return self.accuracy("validation")

    def results(self) -> Mapping[str, float]:
        return {"accuracy": self.accuracy("test")}

    def accuracy(self, split: str) -> float:
        """Share of a split's networks whose class the model says."""
        stack, labels, _ = self.data[split]
        pieces = torch.arange(len(labels)).split(EVALUATION_BATCH)
        said = [self.eval_outputs(stack.select(piece)).argmax(-1) for piece in pieces]
        return (torch.cat(said) == labels).double().mean().item()


def run(config: Config) -> None:
    run_task(config, Classification)


if __name__ == "__main__":
    cli.main(Config, run, __doc__)
