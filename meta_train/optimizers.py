"""The optimizers that are compared: baselines with a grid of learning rates, and learned ones by their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ngopt import NGOptimizer, list_pretrained, load_pretrained
from ngopt.learned import LearnedOptimizer
from ngopt.pretrained import weights_hash

Built = tuple[Optimizer, LRScheduler | None]

MUON_WARMUP = 0.05  # share of the steps


@dataclass(frozen=True)
class OptimizerSpec:
    """How an optimizer is made, and what there is to tune.

    make: (model, lr, total_steps) -> the optimizer, and the scheduler (or None) to step after it.
    lrs: the learning rates to choose from, ascending; empty for a learned optimizer, which needs none.
    weights: SHA-256 of a learned optimizer's weights, else None.
    """

    name: str
    make: Callable[[nn.Module, float, int], Built]
    lrs: tuple[float, ...] = ()
    weights: str | None = None

    def build(self, model: nn.Module, lr: float | None, total_steps: int) -> Built:
        """The optimizer, and the scheduler (or None) to step after it; a learned one needs no learning rate.

        Raises ValueError if a baseline is given none.
        """
        if lr is None and self.lrs:
            grid = ", ".join(map(str, self.lrs))
            raise ValueError(f"optimizer '{self.name}': expected a learning rate, such as {grid}; got None")
        return self.make(model, 1.0 if lr is None else lr, total_steps)


class MuonWithAdam(Optimizer):
    """Muon on every parameter with two or more dimensions, Adam on the others; no weight decay.

    `torch.optim.Muon` takes matrices only, so it is given views of the kernels, (out, in * k * k):
    what it does to a view in place, it does to the kernel. Both parts use the same learning rate.
    Made for comparisons: `state_dict` leaves out the momenta, so it cannot resume.

    Raises ValueError if a kernel is not contiguous, since then it has no such view.
    """

    def __init__(self, params: Iterable[Tensor], lr: float):
        super().__init__(params, {"lr": lr})
        members = self.param_groups[0]["params"]
        self._kernels = [p for p in members if p.ndim >= 2]
        for p in self._kernels:
            if not p.is_contiguous():
                raise ValueError(
                    f"MuonWithAdam: expected contiguous kernels; got strides {p.stride()} of {tuple(p.shape)}"
                )
        self._matrices = [p.detach().view(len(p), -1) for p in self._kernels]
        others = [p for p in members if p.ndim < 2]
        self._parts: list[Optimizer] = []
        if self._matrices:
            self._parts.append(torch.optim.Muon(self._matrices, lr, weight_decay=0.0))
        if others:
            self._parts.append(torch.optim.Adam(others, lr))

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for part in self._parts:
            part.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            part.step()


def cosine_schedule(optimizer: Optimizer, total_steps: int, warmup: float = 0.0) -> LambdaLR:
    """Linear warm-up over a share of the steps, then half a cosine from the full learning rate to 0."""
    first = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + cos(pi * (step - first) / (total_steps - first)))

    return LambdaLR(optimizer, factor)


def load_optimizer(name: str) -> OptimizerSpec:
    """A baseline of `OPTIMIZERS`, or the learned optimizer of bundled weights (by name) or of a weights file (by path).

    Raises ValueError if there is none of that name, or if the weights cannot be loaded.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    bundled = list_pretrained()
    if name not in ("default", *bundled) and not Path(name).is_file():
        known = ", ".join([*OPTIMIZERS, "default", *bundled])
        raise ValueError(f"optimizer '{name}': expected one of {known}, or the path of an existing weights file")
    learned = load_pretrained(name)
    return OptimizerSpec(name, partial(_learned, learned), weights=weights_hash(learned))


def _adam(model: nn.Module, lr: float, total_steps: int) -> Built:
    return torch.optim.Adam(model.parameters(), lr), None


def _adam_cosine(model: nn.Module, lr: float, total_steps: int) -> Built:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    return optimizer, cosine_schedule(optimizer, total_steps)


def _muon_cosine(model: nn.Module, lr: float, total_steps: int) -> Built:
    optimizer = MuonWithAdam(model.parameters(), lr)
    return optimizer, cosine_schedule(optimizer, total_steps, MUON_WARMUP)


def _learned(learned: LearnedOptimizer, model: nn.Module, lr: float, total_steps: int) -> Built:
    return NGOptimizer(model.parameters(), lr, weights=learned, total_steps=total_steps), None


OPTIMIZERS = {
    spec.name: spec
    for spec in (
        OptimizerSpec("adam", _adam, (0.001, 0.003, 0.006, 0.01, 0.02)),
        OptimizerSpec("adam-cosine", _adam_cosine, (0.003, 0.006, 0.01, 0.02, 0.04)),
        OptimizerSpec("muon-cosine", _muon_cosine, (0.005, 0.01, 0.02, 0.05, 0.1)),
    )
}
