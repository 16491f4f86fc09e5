"""Targets that drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.random import seeded
from meta_train.problems.networks.dense import mlp
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.generated import EVALUATED, at_most, fixed
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import (
    REGRESS_WITH_FLOOR,
    DrawnProblem,
    device_of,
)
from meta_train.problems.supervised import (
    CLASSIFY,
    REGRESS,
    Batch,
    Objective,
    on_device,
)

UNSCORED = 0.25  # share of the steps, the first


class OnlineBatch(NamedTuple):
    """Examples of one moment.

    targets: to train on, with noise; clean: without. scored: whether their loss counts.
    """

    inputs: Tensor
    targets: Tensor
    clean: Tensor
    scored: bool


class Online(nn.Module):
    """A network with the sums of its losses on batches before they are trained on."""

    loss_sum: Tensor
    right_sum: Tensor
    batches: Tensor

    def __init__(self, build: Callable[[], nn.Module]):
        super().__init__()
        self.network = build()
        for name in ("loss_sum", "right_sum", "batches"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    @torch.no_grad()
    def record(self, loss: Tensor, right: Tensor) -> None:
        """Adds the loss and accuracy of a batch, (), to the sums."""
        self.loss_sum.add_(loss)
        self.right_sum.add_(right)
        self.batches.add_(1)


@dataclass(frozen=True, eq=False)
class DriftProblem(DrawnProblem):
    """Targets that move with time; reported is the online loss.

    That is the mean loss on each batch before it is trained on, without noise in its
    targets, over all steps but the first quarter. Both splits have the same. Before
    that, the loss on other examples of time 0 is reported.

    draw: (examples, time) -> inputs and targets; time goes from 0 to 1 in `steps`.
    evaluation: the objective of the online loss.
    noise: standard deviation of what is added to the targets to train on.
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

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        assert isinstance(model, Online)
        loss, right, count = model.loss_sum, model.right_sum, model.batches
        if not count:
            with seeded(0, 4, split == "test"):
                examples = self.draw(at_most(EVALUATED, limit), 0.0)
            inputs, targets = on_device(examples, device_of(model))
            loss, right = self._score(model(inputs), targets)
            count = torch.ones_like(loss)
        has_accuracy = self.evaluation.accuracy is not None
        accuracy = (right / count).item() if has_accuracy else None
        return Metrics((loss / count).item(), accuracy)

    def _score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a batch, (); accuracy 0 where the objective has none."""
        loss = self.evaluation.loss(outputs, targets)
        if self.evaluation.accuracy is None:
            return loss, torch.zeros_like(loss)
        return loss, self.evaluation.accuracy(outputs, targets)


def turned(pair: Tensor, turns: float) -> Tensor:
    """A rotation from the first of a pair (2, ...) towards the second, (...)."""
    angle = torch.tensor(2 * torch.pi * turns)
    return angle.cos() * pair[0] + angle.sin() * pair[1]


def turning(count: int, time: float, turns: float, width: int) -> Batch:
    """Targets (b, 1) of a linear function whose direction turns; inputs (b, width)."""
    x = torch.randn(count, width)
    target = x @ turned(fixed(2, width, seed=9), turns * time)
    return x, target[:, None]


def moving_centres(count: int, time: float, turns: float, width: int) -> Batch:
    """Four classes (b,) whose centres go round; inputs (b, width)."""
    labels = torch.randint(4, (count,))
    centres = turned(fixed(2, 4, width, seed=10), turns * time)
    return centres[labels] + 1.5 * torch.randn(count, width), labels


def changing_teacher(count: int, time: float, turns: float, width: int) -> Batch:
    """Targets (b, 2) of a network whose weights move; inputs (b, width)."""
    x = torch.randn(count, width)
    first_layer = turned(fixed(2, width, 16, seed=11) / width**0.5, turns * time)
    hidden = (x @ first_layer).relu()
    return x, hidden @ fixed(16, 2, seed=12) / 4


TURNING = partial(turning, turns=0.4, width=20)
MOVING = partial(moving_centres, turns=0.5, width=16)
CHANGING = partial(changing_teacher, turns=0.5, width=12)


_DRIFT: Kind = (
    [
        DriftProblem(
            "drift-line",
            partial(nn.Linear, 20, 1),
            16,
            500,
            TURNING,
            REGRESS,
            REGRESS_WITH_FLOOR,
            noise=0.3,
        )
    ],
    [
        DriftProblem(
            "drift-centres",
            partial(mlp, (16, 48, 4)),
            32,
            600,
            MOVING,
            CLASSIFY,
            CLASSIFY,
        )
    ],
    [
        DriftProblem(
            "drift-teacher",
            partial(mlp, (12, 64, 2)),
            32,
            800,
            CHANGING,
            REGRESS,
            REGRESS_WITH_FLOOR,
        )
    ],
)


KINDS: dict[str, Kind] = {
    "drift": _DRIFT,
}
