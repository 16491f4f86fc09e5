"""Targets that change during training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import fixed
from meta_train.problems.situations.problems import REGRESS_WITH_FLOOR, SampledProblem
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Batch,
    Objective,
    device_of,
    on_device,
)

UNSCORED = 0.25  # share of the steps, at the beginning


class OnlineBatch(NamedTuple):
    """Examples of one step.

    targets: with noise, for training. clean: targets without noise. scored: whether
    their loss is part of the online loss.
    """

    inputs: Tensor
    targets: Tensor
    clean: Tensor
    scored: bool


class Online(nn.Module):
    """A network with the sums of its losses on batches, each before its update."""

    loss_sum: Tensor
    accuracy_sum: Tensor
    batches: Tensor

    def __init__(self, build: Callable[[], nn.Module]):
        super().__init__()
        self.network = build()
        for name in ("loss_sum", "accuracy_sum", "batches"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    @torch.no_grad()
    def record(self, loss: Tensor, accuracy: Tensor) -> None:
        """Adds the loss and accuracy of a batch, (), to the sums."""
        self.loss_sum.add_(loss)
        self.accuracy_sum.add_(accuracy)
        self.batches.add_(1)


@dataclass(frozen=True, eq=False)
class DriftProblem(SampledProblem):
    """Targets that change with time, evaluated by the online loss.

    The online loss is the mean loss on each batch before its update, with targets
    without noise, over all steps but the first quarter. It is the same for both splits.
    Before a step is scored, the loss on other examples of time 0 is reported.

    draw: (number of examples, time) -> batch; time goes from 0 to 1 in `steps`.
    evaluation: the objective of the online loss.
    noise: standard deviation of the noise in the training targets.
    """

    draw: Callable[[int, float], Batch]
    objective: Objective
    evaluation: Objective
    noise: float = 0.0

    def init(self, seed: int) -> nn.Module:
        with seeded(seed, 0):
            return Online(self.build)

    def draw_batch(self, step: int) -> OnlineBatch:
        time = step / self.steps
        inputs, clean = self.draw(self.batch_size, time)
        targets = clean
        if self.noise:
            targets = clean + self.noise * torch.randn_like(clean)
        return OnlineBatch(inputs, targets, clean, time >= UNSCORED)

    def loss(self, model: nn.Module, batch: OnlineBatch) -> Tensor:
        assert isinstance(model, Online)
        outputs = model(batch.inputs)
        if model.training and batch.scored:
            model.record(*self._score(outputs.detach(), batch.clean))
        return self.objective.loss(outputs, batch.targets)

    def measure(self, model: nn.Module, count: int) -> Metrics:
        assert isinstance(model, Online)
        loss, accuracy = model.loss_sum, model.accuracy_sum
        if model.batches:
            loss, accuracy = loss / model.batches, accuracy / model.batches
        else:
            examples = on_device(self.draw(count, 0.0), device_of(model))
            loss, accuracy = self._score(model(examples[0]), examples[1])
        has_accuracy = self.evaluation.accuracy is not None
        return Metrics(loss.item(), accuracy.item() if has_accuracy else None)

    def _score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a batch, (); 0 for an objective without accuracy."""
        loss = self.evaluation.loss(outputs, targets)
        if self.evaluation.accuracy is None:
            return loss, torch.zeros_like(loss)
        return loss, self.evaluation.accuracy(outputs, targets)


def rotated(pair: Tensor, turns: float) -> Tensor:
    """The first of a pair (2, ...) rotated towards the second, (...)."""
    first, second = pair
    angle = torch.tensor(2 * torch.pi * turns)
    return angle.cos() * first + angle.sin() * second


def rotating_line(count: int, time: float) -> Batch:
    """Targets (b, 1): a linear function that rotates; inputs (b, 20)."""
    x = torch.randn(count, 20)
    return x, (x @ rotated(fixed(2, 20, seed=9), 0.4 * time))[:, None]


def moving_centres(count: int, time: float) -> Batch:
    """Labels (b,) of four classes with rotating centres; inputs (b, 16)."""
    labels = torch.randint(4, (count,))
    centres = rotated(fixed(2, 4, 16, seed=10), 0.5 * time)
    return centres[labels] + 1.5 * torch.randn(count, 16), labels


def changing_teacher(count: int, time: float) -> Batch:
    """Targets (b, 2): a network with changing weights; inputs (b, 12)."""
    x = torch.randn(count, 12)
    first = rotated(fixed(2, 12, 16, seed=11) / 12**0.5, 0.5 * time)
    return x, (x @ first).relu() @ fixed(16, 2, seed=12) / 4


# in turn for development, validation and test
PROBLEMS = {
    "drift-line": DriftProblem(
        lambda: nn.Linear(20, 1),
        batch_size=16,
        steps=500,
        draw=rotating_line,
        objective=REGRESS,
        evaluation=REGRESS_WITH_FLOOR,
        noise=0.3,
    ),
    "drift-centres": DriftProblem(
        lambda: mlp((16, 48, 4)),
        batch_size=32,
        steps=600,
        draw=moving_centres,
        objective=CLASSIFY,
        evaluation=CLASSIFY,
    ),
    "drift-teacher": DriftProblem(
        lambda: mlp((12, 64, 2)),
        batch_size=32,
        steps=800,
        draw=changing_teacher,
        objective=REGRESS,
        evaluation=REGRESS_WITH_FLOOR,
    ),
}
