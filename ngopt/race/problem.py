"""The training problem of a race: what a user's module has to contain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ngopt.importing import load_object

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
    return Problem(
        path.replace(":", ".").rpartition(".")[2],
        found.model,
        found.batches,
        found.loss,
        getattr(found, "validation_batches", None),
    )
