"""How models of the tasks are trained: a budget of minutes,
validation with early stopping, resuming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import inf, isnan
from pathlib import Path
from time import process_time
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from harness.distributed import Ranks
from harness.files import make_folder, read_checkpoint
from harness.interrupts import Interrupted, uninterrupted
from harness.random import seeded
from harness.schedules import half_cosine
from harness.settings import differences
from ngopt import NGOptimizer
from ngopt.pretrained.tensor_files import atomic_write

TRAINERS = ("adamw", "ngopt")
CHECKPOINT = "checkpoint.pt"
# Share of the budget in which the learning rate rises.
WARMUP = 0.05
# Steps whose time does not count, the first of a process and of each stage: in them
# what is compiled is compiled.
UNCOUNTED = 2


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training."""

    minutes: float = 15.0
    """Budget: minutes of a core for training steps; compiling and validation are not
    counted."""
    batch: int = 32
    """Networks of a step, of all ranks together."""
    trainer: str = "adamw"
    """adamw, or ngopt: the default learned optimizer, which has no learning rate."""
    lr: float = 2e-3
    """Of AdamW, decayed along half a cosine to zero."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of a gradient."""
    validations: int = 10
    """In equal distances; the best model is kept."""
    patience: int = 5
    """Validations without a better one after which training ends."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trainer not in TRAINERS:
            raise ValueError(
                f"trainer: expected one of {', '.join(TRAINERS)}; got '{self.trainer}'"
            )
        for key in (
            "minutes",
            "batch",
            "lr",
            "clip",
            "validations",
            "patience",
        ):
            if getattr(self, key) <= 0:
                raise ValueError(
                    f"{key}: expected more than 0; got {getattr(self, key)}"
                )


class Lesson(Protocol):
    """What is learned: a model, and how good it is."""

    model: nn.Module

    def begin(self, share: float) -> int:
        """Before a step, with the share of the budget that has been used. Says which
        stage of the training this is: in each other parts of the model may learn."""
        ...

    def loss(self, step: int) -> Tensor:
        """Of this rank's share of a step's batch."""
        ...

    def score(self) -> float:
        """On validation data; higher is better, and the same on all ranks."""
        ...


@dataclass
class Progress:
    """How far a training is.

    seconds: of a core, for `counted` of the steps, mean over ranks. scores: of all
    validations.
    validated: steps at the last of them. stage, first: the stage of the last step, and
    the number of its first validation. best: the model with the highest score of this
    stage.
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
        own = self.scores[self.first :]
        return len(own) - 1 - own.index(self.top) if own else 0


class Trainer:
    """Trains the model of a lesson in a folder, from where its checkpoint stands.

    Ranks take their shares of every batch; gradients are averaged over them,
    so all have the same model.

    settings: of what is trained; a folder that was begun with others is a ValueError,
    as are fewer networks in a batch than ranks.
    """

    def __init__(
        self,
        lesson: Lesson,
        config: TrainingConfig,
        folder: Path,
        settings: dict[str, Any],
        ranks: Ranks = Ranks(),  # noqa: B008
    ):
        if config.batch < ranks.count:
            raise ValueError(
                f"batch: expected one network or more for each of {ranks.count} ranks; "
                f"got {config.batch}"
            )
        self.model, self.lesson, self.config = lesson.model, lesson, config
        self.folder, self.ranks = folder, ranks
        self.settings = {**settings, **asdict(config)}
        self.optimizer = _optimizer(lesson.model, config)
        self.progress = Progress()
        self._steps_alike = 0  # in this process and stage

    def run(self) -> Progress:
        """Trains to the end and leaves the best model in place.

        Raises Interrupted for Ctrl-C, which says where the checkpoint stands; one rank
        alone writes it then.
        """
        make_folder(self.folder)
        self._resume()
        writer = None
        if self.ranks.is_first:
            # drops what an interrupted training showed after its checkpoint
            first = self.progress.steps + 1
            writer = SummaryWriter(str(self.folder), purge_step=first)
        try:
            self._train(writer)
        except KeyboardInterrupt:
            raise self._interrupted() from None
        finally:
            if writer:
                writer.close()
        self.model.load_state_dict(self.progress.best)
        return self.progress

    def _train(self, writer: SummaryWriter | None) -> None:
        with tqdm(total=100, unit="%", disable=writer is None) as bar:
            while not self._is_over():
                if self._is_validation_due():
                    self._validate(writer)
                    bar.set_postfix(score=f"{self.progress.scores[-1]:.4f}")
                    continue
                loss = self.step()
                bar.update(min(100, int(100 * self.share)) - bar.n)
                if writer:
                    writer.add_scalar("loss", loss, self.progress.steps)

    def _interrupted(self) -> Interrupted:
        """Writes the checkpoint, if this is the only rank, and says where it stands."""
        path, steps = self.folder / CHECKPOINT, self.progress.steps
        if self.ranks.count == 1:
            with uninterrupted():
                self._save()
        elif not path.exists():
            return Interrupted(f"checkpoint '{path}' was not written yet")
        else:
            steps = self.progress.validated
        return Interrupted(
            f"checkpoint '{path}' stands at step {steps}; the same command with "
            f"--folder {self.folder} goes on from there"
        )

    @property
    def share(self) -> float:
        """Of the budget, that has been used."""
        return self.progress.seconds / (60 * self.config.minutes)

    def step(self) -> float:
        """One step; returns the loss of this rank's share of the batch."""
        progress, start = self.progress, process_time()
        stage = self.lesson.begin(self.share)
        if stage != progress.stage:
            progress.stage, progress.first = stage, len(progress.scores)
            self._steps_alike = 0
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = _rate(self.config) * rate_factor(self.share)
        self.optimizer.zero_grad()
        with self._buffers_restored():
            with seeded(self.config.seed, 1, progress.steps, self.ranks.number):
                loss = self.lesson.loss(progress.steps)
                loss.backward()
            self._average_gradients()
            clip_grad_norm_(self.model.parameters(), self.config.clip)
        with uninterrupted():
            self.optimizer.step()
            progress.steps += 1
            self._steps_alike += 1
            own = torch.tensor(process_time() - start, dtype=torch.float64)
            seconds = self.ranks.summed(own).item() / self.ranks.count
            if self._steps_alike > UNCOUNTED:
                progress.counted += 1
                progress.seconds += seconds
        return loss.item()

    @contextmanager
    def _buffers_restored(self) -> Iterator[None]:
        """Buffers, such as running means, are what they were before if the body raises."""
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        except BaseException:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            raise

    def _average_gradients(self) -> None:
        if self.ranks.count == 1:
            return
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                self.ranks.summed(parameter.grad).div_(self.ranks.count)

    def _average_buffers(self) -> None:
        """Of running averages every rank has seen its own share of the data."""
        if self.ranks.count == 1:
            return
        for buffer in self.model.buffers():
            if buffer.is_floating_point():
                self.ranks.summed(buffer).div_(self.ranks.count)

    def _is_over(self) -> bool:
        progress = self.progress
        is_used_up = len(progress.scores) >= self.config.validations
        return is_used_up or progress.since_top >= self.config.patience

    def _is_validation_due(self) -> bool:
        progress, share = self.progress, self.share * self.config.validations
        return progress.steps > progress.validated and share >= len(progress.scores) + 1

    def _validate(self, writer: SummaryWriter | None) -> None:
        progress = self.progress
        self._average_buffers()
        self.model.eval()
        with torch.no_grad():
            score = self.lesson.score()
        with uninterrupted():
            self._keep(-inf if isnan(score) else score)
            if writer:
                writer.add_scalar("validation", progress.scores[-1], progress.steps)
                self._save()

    def _keep(self, score: float) -> None:
        """Adds the score of the present model, and keeps the model if it is the best."""
        progress = self.progress
        if score > progress.top or len(progress.scores) == progress.first:
            state = self.model.state_dict()
            progress.best = {
                name: value.detach().clone() for name, value in state.items()
            }
        progress.scores.append(score)
        progress.validated = progress.steps

    def _save(self) -> None:
        state = {
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }
        with atomic_write(self.folder / CHECKPOINT) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = read_checkpoint(path)
        told = differences(state["settings"], self.settings)
        if told:
            raise ValueError(f"checkpoint '{path}': made with other settings: {told}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])


def rate_factor(share: float) -> float:
    """Of the learning rate: a linear rise, then half a cosine to zero. share: of the
    budget, from 0."""
    if share < WARMUP:
        return max(share, 1e-3) / WARMUP
    fall = min(1.0, (share - WARMUP) / (1 - WARMUP))
    return half_cosine(fall)


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    if config.trainer == "ngopt":
        return NGOptimizer(model.named_parameters())  # with a decay of its own
    decay = config.weight_decay
    return torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=decay, fused=True
    )


def _rate(config: TrainingConfig) -> float:
    """Peak learning rate; NGOptimizer's multiplies its own."""
    return config.lr if config.trainer == "adamw" else 1.0
