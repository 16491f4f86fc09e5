"""Training problems of a race, which users' modules contain, and runs on them: every
optimizer from the same weights on the same batches."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ngopt.importing import load_object
from ngopt.race.optimizers import Contestant

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
    found = load_object(path)
    missing = [key for key in REQUIRED if not callable(getattr(found, key, None))]
    if missing:
        raise ValueError(
            f"race: expected functions {', '.join(REQUIRED)} in '{path}'; "
            f"got no {', '.join(missing)}"
        )
    name = path.replace(":", ".").rpartition(".")[2]
    validation = getattr(found, "validation_batches", None)
    return Problem(name, found.model, found.batches, found.loss, validation)


@dataclass
class Run:
    """One training.

    losses: of every step. seconds: of training until the end of every step.
    validation: loss after the last step; None without validation batches.
    """

    optimizer: str
    lr: float | None
    seed: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: float | None = None

    @property
    def train_loss(self) -> float:
        """Mean of the last tenth of the steps; infinite if one is not finite."""
        last = self.losses[-max(len(self.losses) // 10, 1) :]
        mean = fmean(last)
        return mean if isfinite(mean) else inf

    @property
    def score(self) -> float:
        """What optimizers are compared by: validation loss, or else training loss."""
        if self.validation is None:
            return self.train_loss
        return self.validation if isfinite(self.validation) else inf


def train(
    problem: Problem,
    contestant: Contestant,
    lr: float | None,
    seed: int,
    steps: int,
    device: torch.device,
    on_step: Callable[[float], None],
) -> Run:
    """Trains once. on_step: is called with the loss of every step."""
    torch.manual_seed(seed)
    model = problem.model().to(device)
    optimizer, scheduler = contestant.start(model, lr, steps)
    run = Run(contestant.name, lr, seed)
    batches = _repeated(problem)
    torch.manual_seed(seed)  # dropout is the same for all
    elapsed = 0.0
    for _ in range(steps):
        batch = moved(next(batches), device)
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = problem.loss(model, batch)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        run.losses.append(float(loss.detach()))
        elapsed += time.perf_counter() - begin
        run.seconds.append(elapsed)
        on_step(run.losses[-1])
    run.validation = _validation_loss(problem, model, device)
    return run


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
        loss = problem.loss(model, moved(batch, device))
        losses.append(float(loss))
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
