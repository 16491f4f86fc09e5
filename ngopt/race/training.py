"""Training problems of a race, which users' modules contain, and runs on them: every
optimizer from the same weights on the same batches."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import inf, isfinite
from statistics import fmean
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ngopt.importing import load_object
from ngopt.race.optimizers import OptimizerSpec

REQUIRED = "model", "batches", "loss"


@dataclass(frozen=True)
class Problem:
    """A network, its batches and its loss.

    name: the module's.
    model: makes the network. Called after `torch.manual_seed`.
    batches: makes an iterable of training batches, in the same order at every call.
        It is started again when it ends.
    loss: of a network and a batch, a scalar tensor.
    validation_batches: makes the batches of the validation loss. None: optimizers are
        compared by the training loss.
    """

    name: str
    model: Callable[[], nn.Module]
    batches: Callable[[], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    validation_batches: Callable[[], Iterable[Any]] | None = None


def load_problem(path: str) -> Problem:
    """The problem in an importable module.

    path: "package.module", or "package.module:name" of an object in it that has the
    same functions.

    Raises ValueError if it cannot be imported or lacks a function.
    """
    module = load_object(path)
    missing = [key for key in REQUIRED if not callable(getattr(module, key, None))]
    if missing:
        raise ValueError(
            f"race: expected functions {', '.join(REQUIRED)} in '{path}'; "
            f"got no {', '.join(missing)}"
        )
    name = path.replace(":", ".").rpartition(".")[2]
    validation = getattr(module, "validation_batches", None)
    return Problem(name, module.model, module.batches, module.loss, validation)


@dataclass
class Run:
    """One training run.

    losses: of every step. seconds: of training until the end of every step.
    validation: loss after the last step; None without validation batches.
    """

    optimizer: str
    lr: float | None
    seed: int
    losses: list[float]
    seconds: list[float]
    validation: float | None = None

    @property
    def train_loss(self) -> float:
        """Mean of the last tenth of the steps; infinite if one is not finite."""
        mean = fmean(self.losses[-max(len(self.losses) // 10, 1) :])
        return mean if isfinite(mean) else inf

    @property
    def score(self) -> float:
        """What optimizers are compared by: validation loss, or else training loss."""
        if self.validation is None:
            return self.train_loss
        return self.validation if isfinite(self.validation) else inf


class TrainingLoop:
    """A network with its optimizer, scheduler and loss.

    loss_of: from the network and the number of the step, from 0, to the loss of a
        batch, a scalar tensor.
    losses: of each step, before its update.
    ms: milliseconds of each step: batch, forward, backward, optimizer.
    optimizer_ms: those of optimizer and scheduler within it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        loss_of: Callable[[nn.Module, int], Tensor],
    ):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.loss_of = loss_of
        self.losses: list[float] = []
        self.ms: list[float] = []
        self.optimizer_ms: list[float] = []

    def step(self) -> None:
        begin = perf_counter()
        self.optimizer.zero_grad()
        loss = self.loss_of(self.model, len(self.losses))
        loss.backward()
        middle = perf_counter()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.losses.append(loss.item())  # waits for the step on a GPU
        end = perf_counter()
        self.ms.append(1e3 * (end - begin))
        self.optimizer_ms.append(1e3 * (end - middle))


def train(
    problem: Problem,
    spec: OptimizerSpec,
    lr: float | None,
    seed: int,
    steps: int,
    device: torch.device,
    on_step: Callable[[float], None],
) -> Run:
    """Trains once. on_step: is called with the loss of every step."""
    loop = training_loop(problem, spec, lr, seed, steps, device)
    for _ in range(steps):
        loop.step()
        on_step(loop.losses[-1])
    seconds = [1e-3 * ms for ms in accumulate(loop.ms)]
    validation = _validation_loss(problem, loop.model, device)
    return Run(spec.name, lr, seed, loop.losses, seconds, validation)


def training_loop(
    problem: Problem,
    spec: OptimizerSpec,
    lr: float | None,
    seed: int,
    steps: int,
    device: torch.device,
) -> TrainingLoop:
    """The loop of a run before its first step."""
    torch.manual_seed(seed)
    model = problem.model().to(device)
    batches = _repeated(problem)

    def loss_of_next_batch(model: nn.Module, number: int) -> Tensor:
        return problem.loss(model, moved(next(batches), device))

    optimizer, scheduler = spec.build(model, lr, steps)
    torch.manual_seed(seed)  # dropout is the same for all
    return TrainingLoop(model, optimizer, scheduler, loss_of_next_batch)


def _repeated(problem: Problem) -> Iterator[Any]:
    while True:
        count = 0
        for batch in problem.batches():
            count += 1
            yield batch
        if not count:
            raise ValueError(f"race: expected batches in '{problem.name}'; got none.")


@torch.no_grad()
def _validation_loss(
    problem: Problem, model: nn.Module, device: torch.device
) -> float | None:
    if problem.validation_batches is None:
        return None
    model.eval()
    losses = []
    for batch in problem.validation_batches():
        losses.append(float(problem.loss(model, moved(batch, device))))
    if not losses:
        raise ValueError(
            f"race: expected validation_batches in '{problem.name}'; got none."
        )
    return fmean(losses)


def moved(batch: Any, device: torch.device) -> Any:
    """Tensors on a device, also nested in tuples, lists and dictionaries.

    Other objects with a method `to`, such as `BatchEncoding` of transformers, are moved
    by it.
    """
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch
