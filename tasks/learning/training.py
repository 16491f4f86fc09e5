"""Trains models of the tasks: a budget of minutes, validation with early stopping."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf, isnan
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from harness.checkpoint import Checkpoint, ResumableTrainer
from harness.distributed import Ranks
from harness.errors import uninterrupted
from harness.random import seeded
from harness.settings import check_choice, check_setting
from ngopt import NGOptimizer
from ngopt.schedule import half_cosine

TRAINERS = ("adamw", "ngopt")
# Share of the budget with linear warm-up.
WARMUP = 0.05
# First steps of a process and of each stage whose time is not counted: they compile.
UNCOUNTED = 2


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run."""

    minutes: float = 15.0
    """Budget: minutes of a core for training steps; compiling and validation are not
    counted."""
    batch: int = 32
    """Networks of a step."""
    trainer: str = "adamw"
    """adamw, or ngopt: the default of NGOptimizer, which has no learning rate."""
    lr: float = 2e-3
    """Learning rate of AdamW, decayed along half a cosine to zero."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    validations: int = 10
    """Number of validations, at equal distances; the best model is kept."""
    patience: int = 5
    """Validations without a better one after which training ends."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("trainer", self.trainer, TRAINERS)
        for key in ("minutes", "batch", "lr", "clip", "validations", "patience"):
            value = getattr(self, key)
            check_setting(value > 0, key, "more than 0", value)


class Trainable:
    """What a `Trainer` trains: a model, with its loss and its score."""

    model: nn.Module

    def begin(self, share: float) -> int:
        """Called before a step with the used share of the budget.

        Returns the stage of the training run; each may train other parts of the model.
        """
        raise NotImplementedError

    def loss(self, step: int) -> Tensor:
        """The loss of a step's batch."""
        raise NotImplementedError

    def score(self) -> float:
        """The score on validation data; higher is better."""
        raise NotImplementedError


@dataclass
class Progress:
    """The progress of a training run.

    seconds: of a core, for `counted` of the steps.
    scores: of all validations. validated: steps at the last of them.
    stage: of the last step. first: number of its first validation.
    best: the model with the highest score of this stage.
    """

    steps: int = 0
    counted: int = 0
    seconds: float = 0.0
    scores: list[float] = field(default_factory=list)
    stage: int | None = None
    first: int = 0
    validated: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def top(self) -> float:
        return max(self.scores[self.first :], default=-inf)

    @property
    def since_top(self) -> int:
        """Validations after the best."""
        scores = self.scores[self.first :]
        return len(scores) - 1 - scores.index(self.top) if scores else 0


class Trainer(ResumableTrainer):
    """Trains the model of a task in a folder.

    settings: of the task. Raises ValueError from `run` if the folder was begun with
    other settings.
    """

    def __init__(
        self,
        task: Trainable,
        config: TrainingConfig,
        folder: Path,
        settings: dict[str, Any],
    ):
        super().__init__(Checkpoint(folder, {**settings, **asdict(config)}), Ranks())
        self.model, self.task, self.config = task.model, task, config
        if config.trainer == "ngopt":  # with a decay of its own
            self.optimizer = NGOptimizer(self.model.named_parameters())
        else:
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(),
                lr=config.lr,
                weight_decay=config.weight_decay,
                fused=True,
            )
        self.progress = Progress()
        self._stage_steps = 0  # in this process

    @property
    def steps_done(self) -> int:
        return self.progress.steps

    def train(self, writer: SummaryWriter | None) -> None:
        """Trains to the end, and leaves the best model in place."""
        with tqdm(total=100, unit="%", disable=writer is None) as bar:
            while not self._is_finished():
                if self._is_validation_step():
                    self._validate(writer)
                    bar.set_postfix(score=f"{self.progress.scores[-1]:.4f}")
                    continue
                loss = self.step()
                bar.update(min(100, int(100 * self.share)) - bar.n)
                if writer:
                    writer.add_scalar("loss", loss, self.progress.steps)
            if self.progress.since_top >= self.config.patience and writer:
                bar.write(
                    f"stopped early: none of the last {self.config.patience} "
                    "validations was the best"
                )
        self.model.load_state_dict(self.progress.best)

    @property
    def share(self) -> float:
        """The share of the budget that has been used."""
        return self.progress.seconds / (60 * self.config.minutes)

    def step(self) -> float:
        """One step; returns the loss of the batch."""
        progress, start = self.progress, process_time()
        stage = self.task.begin(self.share)
        if stage != progress.stage:
            progress.stage, progress.first = stage, len(progress.scores)
            self._stage_steps = 0
        self.model.train()
        for group in self.optimizer.param_groups:
            # the rate of NGOptimizer multiplies its own
            rate = self.config.lr if self.config.trainer == "adamw" else 1.0
            group["lr"] = rate * rate_factor(self.share)
        self.optimizer.zero_grad()
        with self._buffers_restored():
            with seeded(self.config.seed, 1, progress.steps):
                loss = self.task.loss(progress.steps)
                loss.backward()
            clip_grad_norm_(self.model.parameters(), self.config.clip)
        with uninterrupted():
            self.optimizer.step()
            progress.steps += 1
            self._stage_steps += 1
            if self._stage_steps > UNCOUNTED:
                progress.counted += 1
                progress.seconds += process_time() - start
        return loss.item()

    @contextmanager
    def _buffers_restored(self) -> Iterator[None]:
        """Restores buffers, such as running means, if the body raises."""
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        except BaseException:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            raise

    def _is_finished(self) -> bool:
        progress = self.progress
        is_used_up = len(progress.scores) >= self.config.validations
        return is_used_up or progress.since_top >= self.config.patience

    def _is_validation_step(self) -> bool:
        progress = self.progress
        due = int(self.share * self.config.validations)
        return progress.steps > progress.validated and due > len(progress.scores)

    def _validate(self, writer: SummaryWriter | None) -> None:
        progress = self.progress
        self.model.eval()
        with torch.no_grad():
            score = self.task.score()
        with uninterrupted():
            score = -inf if isnan(score) else score
            if score > progress.top or len(progress.scores) == progress.first:
                progress.best = {
                    name: value.detach().clone()
                    for name, value in self.model.state_dict().items()
                }
            progress.scores.append(score)
            progress.validated = progress.steps
            if writer:
                writer.add_scalar("validation", score, progress.steps)
            self.save_checkpoint()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])


def rate_factor(share: float) -> float:
    """The factor of the learning rate: linear warm-up, then half a cosine to zero.

    share: of the budget that has been used.
    """
    if share < WARMUP:
        return max(share, 1e-3) / WARMUP
    return half_cosine(min(1.0, (share - WARMUP) / (1 - WARMUP)))
