"""The optimizers of a race, each with the learning rates that it is tuned over.

Baselines have a warm-up of 5 % of the steps and half a cosine to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ngopt.optimizer import NGOptimizer
from ngopt.roles import parameter_roles

WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01
ADAM_RATES = 1e-4, 3e-4, 1e-3, 3e-3, 1e-2
MATRIX_RATES = 1e-3, 3e-3, 1e-2, 3e-2
SGD_RATES = 3e-3, 1e-2, 3e-2, 1e-1


class MuonWithAdamW(Optimizer):
    """Muon for matrices, AdamW at the same rate for tables, output layers and the rest.

    `torch.optim.Muon` takes two-dimensional parameters only; kernels are flattened.
    """

    def __init__(self, model: nn.Module, lr: float):
        roles = parameter_roles(list(model.named_parameters()))
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, p in model.named_parameters():
            is_matrix = roles[name].role == "matrix" and p.dim() >= 2
            (matrices if is_matrix else others).append(p)
        self._kernels = [p for p in matrices if p.dim() > 2]
        for p in self._kernels:
            if not p.is_contiguous():
                raise ValueError("race: muon needs contiguous kernels.")
        self._flat = {id(p): nn.Parameter(p.detach().flatten(1)) for p in self._kernels}
        flat = [self._flat.get(id(p), p) for p in matrices]
        self._inner: list[Optimizer] = []
        if flat:
            muon = torch.optim.Muon(
                flat, lr, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            )
            self._inner.append(muon)
        if others:
            self._inner.append(AdamW(others, lr, weight_decay=WEIGHT_DECAY))
        super().__init__([*matrices, *others], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for p in self._kernels:
            grad = p.grad
            self._flat[id(p)].grad = None if grad is None else grad.flatten(1)
        for optimizer in self._inner:
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            optimizer.step()


def _soap(model: nn.Module, lr: float) -> Optimizer:
    try:
        heavyball = import_module("heavyball")
    except ImportError as error:
        raise ValueError(
            "race: soap needs heavyball. Install it: pip install heavyball"
        ) from error
    return heavyball.SOAP(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)


def _ngopt(model: nn.Module, total_steps: int) -> Optimizer:
    return NGOptimizer(model.named_parameters(), model=model, total_steps=total_steps)


@dataclass(frozen=True)
class Contestant:
    """An optimizer and its grid.

    rates: learning rates that are tried; empty if there is nothing to tune.
    make: of a network and a rate.
    """

    name: str
    rates: Sequence[float]
    make: Callable[[nn.Module, float], Optimizer] | None = None

    def start(
        self, model: nn.Module, lr: float | None, total_steps: int
    ) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer of a network, with the schedule of a baseline."""
        if lr is None or self.make is None:
            return _ngopt(model, total_steps), None
        optimizer = self.make(model, lr)
        return optimizer, _warmup_cosine(optimizer, total_steps)


CONTESTANTS = {
    "ngopt": Contestant("ngopt", ()),
    "adamw": Contestant(
        "adamw",
        ADAM_RATES,
        lambda model, lr: AdamW(model.parameters(), lr, weight_decay=WEIGHT_DECAY),
    ),
    "muon": Contestant("muon", MATRIX_RATES, MuonWithAdamW),
    "soap": Contestant("soap", MATRIX_RATES, _soap),
    "sgd": Contestant(
        "sgd",
        SGD_RATES,
        lambda model, lr: SGD(model.parameters(), lr, momentum=0.9, nesterov=True),
    ),
}


def _warmup_cosine(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    first = max(round(WARMUP * total_steps), 1)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + cos(pi * (step - first) / max(total_steps - first, 1)))

    return LambdaLR(optimizer, factor)
