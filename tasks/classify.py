"""Classification of images through their networks:
`python -m tasks.classify --data data/inr-mnist --folder runs/m --probes 16`.

Trains a model to predict the class of the image that a network represents, from the
network alone (Kofinas et al. 2024, section 4.1), on a folder of `tasks.inr fit`. Writes
a checkpoint, from which the same command resumes, TensorBoard events and `result.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import cli
from tasks.learning.sirens import read_sirens
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.networks.augment import random_affine
from tasks.shards import check_column

CLASSES = 10


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of a classification task."""

    augment: bool = True
    """Rotate, scale and shift the images of training networks at random."""


class Classification(NetworkTask[Config]):
    """The loss is cross-entropy, the score accuracy."""

    def build(self, config: Config) -> None:
        self.data = read_sirens(config.data, config.limit)
        for networks in self.data.values():
            check_column(config.data, networks.columns, "label", CLASSES - 1)
        self.model = self.make_model([self.data["train"].stack], CLASSES)

    def loss(self, step: int) -> Tensor:
        train = self.data["train"]
        index = self.batch(train.stack.count, step)
        stack = train.stack.select(index)
        if self.config.augment:
            stack = random_affine(stack, degrees=15, scale=0.1, shift=0.1)
        logits = self.training_outputs(self.prepared(stack))
        return cross_entropy(logits, train.columns["label"][index])

    def score(self) -> float:
        return self.accuracy("validation")

    def results(self) -> Mapping[str, float]:
        return {"accuracy": self.accuracy("test")}

    def accuracy(self, split: str) -> float:
        data = self.data[split]
        logits = map(self.eval_outputs, data.stack.split(EVALUATION_BATCH))
        predicted = torch.cat([chunk.argmax(-1) for chunk in logits])
        return (predicted == data.columns["label"]).double().mean().item()


if __name__ == "__main__":
    cli.main(Config, partial(run_task, make=Classification), __doc__)
