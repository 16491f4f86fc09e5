"""Classification of images through their networks:
`python -m tasks.classify --data data/inr-mnist --folder runs/m --probes 16`.

Trains a model to predict the class of the image that a network represents, from the
network alone (Kofinas et al. 2024, section 4.1), on a folder of `tasks.inr fit`. Writes
a checkpoint, from which the same command resumes, TensorBoard events, `result.json`
and, of learned probes, `probes.png`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import cli
from tasks.learning.image_networks import CLASSES, read_image_networks
from tasks.learning.task import EVALUATION_BATCH, NetworkTask, TaskConfig, run_task
from tasks.networks.augment import random_affine


@dataclass(frozen=True)
class Config(TaskConfig):
    """Settings of a classification."""

    augment: bool = True
    """Rotate, scale and shift the images of training networks at random."""


class Classification(NetworkTask[Config]):
    """The loss is cross-entropy, the score accuracy."""

    def build(self, config: Config) -> None:
        self.data = read_image_networks(config)
        self.model = self.make_model([self.data["train"].stack], CLASSES)

    def loss(self, step: int) -> Tensor:
        train = self.data["train"]
        index = self.batch(len(train.labels), step)
        stack = train.stack.select(index)
        if self.config.augment:
            stack = random_affine(stack, degrees=15, scale=0.1, shift=0.1)
        logits = self.training_outputs(self.prepared(stack))
        return cross_entropy(logits, train.labels[index])

    def score(self) -> float:
        return self.accuracy("validation")

    def results(self) -> Mapping[str, float]:
        return {"accuracy": self.accuracy("test")}

    def accuracy(self, split: str) -> float:
        data = self.data[split]
        predicted = []
        for stack in data.stack.split(EVALUATION_BATCH):
            predicted.append(self.eval_outputs(stack).argmax(-1))
        return (torch.cat(predicted) == data.labels).double().mean().item()


if __name__ == "__main__":
    cli.main(Config, partial(run_task, make=Classification), __doc__)
