"""How optimizers of a comparison are made and tuned, and those of `ngopt race`.

Baselines have a warm-up of 5 % of the steps and half a cosine to zero.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ngopt.optimizer import NGOptimizer
from ngopt.race.muon import MuonWithAdam
from ngopt.roles import parameter_roles
from ngopt.schedule import cosine_schedule

WARMUP = 0.05  # share of the steps; without it Adam is unstable at its best rates
WEIGHT_DECAY = 0.01  # torch's default for AdamW
ADAM_LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
MATRIX_LRS = (1e-3, 3e-3, 1e-2, 3e-2)
SGD_LRS = (3e-3, 1e-2, 3e-2, 1e-1)

Built = tuple[Optimizer, LRScheduler | None]
Make = Callable[[nn.Module, float], Optimizer]
"""From a network and a learning rate to an optimizer."""


@dataclass(frozen=True)
class OptimizerSpec:
    """How an optimizer is made and tuned.

    make: (model, lr, total_steps) -> the optimizer, and the scheduler (or None) to step
        after it.
    lrs: the learning rates to choose from, ascending; empty if none is tuned.
    lr: the learning rate if none is tuned.
    needs: a module that is not installed with ngopt.
    """

    name: str
    make: Callable[[nn.Module, float, int], Built]
    lrs: tuple[float, ...] = ()
    lr: float = 1.0
    needs: str | None = None

    def check(self) -> None:
        """Raises ValueError if the module that it needs is missing."""
        if self.needs is not None and find_spec(self.needs) is None:
            raise ValueError(
                f"optimizer '{self.name}' needs {self.needs}. Install it: "
                f"pip install {self.needs}"
            )

    def build(self, model: nn.Module, lr: float | None, total_steps: int) -> Built:
        """The optimizer, and the scheduler (or None) to step after it.

        Raises ValueError if a tuned optimizer gets no learning rate.
        """
        if lr is None and self.lrs:
            raise ValueError(
                f"optimizer '{self.name}': expected a learning rate, such as "
                f"{', '.join(map(str, self.lrs))}; got None"
            )
        return self.make(model, self.lr if lr is None else lr, total_steps)


def with_cosine(make: Make) -> Callable[[nn.Module, float, int], Built]:
    """Adds warm-up and cosine schedule to an optimizer."""

    def build(model: nn.Module, lr: float, total_steps: int) -> Built:
        optimizer = make(model, lr)
        return optimizer, cosine_schedule(optimizer, total_steps, WARMUP)

    return build


def from_torch(kind: Callable[..., Optimizer], **options: Any) -> Make:
    """An optimizer of `torch.optim` for all parameters of a network."""

    def make(model: nn.Module, lr: float) -> Optimizer:
        return kind(model.parameters(), lr, **options)

    return make


def soap(model: nn.Module, lr: float, kind: str = "SOAP") -> Optimizer:
    """heavyball's SOAP or KLSOAP with its defaults: a new basis every second step,
    decay .01.

    Compiled on a GPU alone: for small networks on a CPU, compiling takes longer than
    the run.
    """
    # optional, and its import takes two seconds
    heavyball = import_module("heavyball")
    if next(model.parameters()).device.type == "cpu":
        heavyball.utils.compile_mode = None
    # heavyball warns for every scheduler, but reads the rate at each step
    warnings.filterwarnings(
        "ignore", "Learning rate changed between steps", UserWarning
    )
    return getattr(heavyball, kind)(model.parameters(), lr=lr)


def parameters_for_adam(named: list[tuple[str, nn.Parameter]]) -> list[nn.Parameter]:
    """Tables, output layers and vectors, which Muon does not train."""
    roles = parameter_roles(named)
    return [p for name, p in named if roles[name].role != "matrix"]


def _muon(model: nn.Module, lr: float) -> Optimizer:
    """Muon for matrices, AdamW for tables, output layers and vectors."""
    with_adam = parameters_for_adam(list(model.named_parameters()))
    return MuonWithAdam(
        model.parameters(), lr, with_adam, WEIGHT_DECAY, "match_rms_adamw"
    )


def _ngopt(model: nn.Module, scale: float, total_steps: int) -> Built:
    named = model.named_parameters()
    return NGOptimizer(named, scale=scale, total_steps=total_steps), None


_adamw = from_torch(AdamW, weight_decay=WEIGHT_DECAY)
_sgd = from_torch(SGD, momentum=0.9, nesterov=True)

OPTIMIZERS = {
    spec.name: spec
    for spec in (
        OptimizerSpec("ngopt", _ngopt),
        OptimizerSpec("adamw", with_cosine(_adamw), ADAM_LRS),
        OptimizerSpec("muon", with_cosine(_muon), MATRIX_LRS),
        OptimizerSpec("soap", with_cosine(soap), MATRIX_LRS, needs="heavyball"),
        OptimizerSpec("sgd", with_cosine(_sgd), SGD_LRS),
    )
}
