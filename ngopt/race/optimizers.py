"""The optimizers of a race, each with the learning rates that it is tuned over.

A grid grows while its best rate is at the edge: `tuned`.
Baselines have a warm-up of 5 % of the steps and half a cosine to zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ngopt.optimizer import NGOptimizer
from ngopt.race.muon import MuonWithAdam
from ngopt.roles import parameter_roles
from ngopt.schedule import cosine_schedule

WARMUP = 0.05  # share of the steps
WEIGHT_DECAY = 0.01
ADAM_RATES = 1e-4, 3e-4, 1e-3, 3e-3, 1e-2
MATRIX_RATES = 1e-3, 3e-3, 1e-2, 3e-2
SGD_RATES = 3e-3, 1e-2, 3e-2, 1e-1
EXTRA_RATES = 3  # at most, beyond the edges of a grid


def _muon(model: nn.Module, lr: float) -> Optimizer:
    """Muon for matrices, AdamW for tables, output layers and vectors."""
    roles = parameter_roles(list(model.named_parameters()))
    others = []
    for name, p in model.named_parameters():
        if roles[name].role != "matrix":
            others.append(p)
    return MuonWithAdam(model.parameters(), lr, others, WEIGHT_DECAY, "match_rms_adamw")


def _soap(model: nn.Module, lr: float) -> Optimizer:
    heavyball = import_module("heavyball")
    return heavyball.SOAP(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)


def _adamw(model: nn.Module, lr: float) -> Optimizer:
    return AdamW(model.parameters(), lr, weight_decay=WEIGHT_DECAY)


def _sgd(model: nn.Module, lr: float) -> Optimizer:
    return SGD(model.parameters(), lr, momentum=0.9, nesterov=True)


@dataclass(frozen=True)
class Contestant:
    """An optimizer and its grid.

    rates: learning rates that are tried; empty if there is nothing to tune.
    make: of a network and a rate. needs: a module that is not part of ngopt.
    """

    name: str
    rates: Sequence[float]
    make: Callable[[nn.Module, float], Optimizer] | None = None
    needs: str | None = None

    def check(self) -> None:
        """Raises ValueError if the module that it needs is missing."""
        if self.needs is not None and find_spec(self.needs) is None:
            raise ValueError(
                f"race: {self.name} needs {self.needs}. Install it: "
                f"pip install {self.needs}"
            )

    def start(
        self, model: nn.Module, lr: float | None, total_steps: int
    ) -> tuple[Optimizer, LRScheduler | None]:
        """The optimizer of a network, with the schedule of a baseline."""
        if lr is None or self.make is None:
            named = model.named_parameters()
            return NGOptimizer(named, model=model, total_steps=total_steps), None
        optimizer = self.make(model, lr)
        warmup = max(WARMUP, 1 / total_steps)  # of one step at least
        return optimizer, cosine_schedule(optimizer, total_steps, warmup)


def tuned(
    rates: Sequence[float], score: Callable[[float], float]
) -> tuple[list[float], float, bool]:
    """All rates that were tried, the best, and whether it is the largest or smallest.

    While the best is at the edge, the next of 1, 3, 10, 30, ... is tried too, at most
    `EXTRA_RATES` times. Ties and diverged runs favour the smaller rate.

    score: trains at a rate and returns the loss.
    """
    scores = {rate: score(rate) for rate in sorted(rates)}
    for _ in range(EXTRA_RATES):
        best = min(scores, key=lambda rate: (scores[rate], rate))
        below, above = neighbours(best)
        if best == max(scores):
            new = above
        elif best == min(scores):
            new = below
        else:
            break
        scores[new] = score(new)
    tried = sorted(scores)
    best = min(tried, key=lambda rate: scores[rate])
    return tried, best, best in (tried[0], tried[-1])


def neighbours(rate: float) -> tuple[float, float]:
    """The rates before and after in 1, 3, 10, 30, ..."""
    digit, exponent = f"{rate:.0e}".split("e")
    below = f"1e{exponent}" if int(digit) > 1 else f"3e{int(exponent) - 1}"
    above = f"3e{exponent}" if int(digit) < 3 else f"1e{int(exponent) + 1}"
    return float(below), float(above)


ALL = (
    Contestant("ngopt", ()),
    Contestant("adamw", ADAM_RATES, _adamw),
    Contestant("muon", MATRIX_RATES, _muon),
    Contestant("soap", MATRIX_RATES, _soap, "heavyball"),
    Contestant("sgd", SGD_RATES, _sgd),
)
CONTESTANTS = {contestant.name: contestant for contestant in ALL}
