"""AMUSE: Muon without a schedule (Kim et al. 2026, arXiv 2605.22432)."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from ngopt.newton_schulz import orthogonalized

FIRST_WEIGHT = 0.6  # of the averages in the points of gradients, called beta1
POWER = 0.8  # of the growth of that weight after the warm-up, called rho
MOMENTUM = 0.95
SQUARE_DECAY = 0.999
EPSILON = 1e-10


class Amuse(Optimizer):
    """Averaged Muon on parameters of two dimensions or more, RMSprop on the others.

    Steps start at z; x averages all z; gradients are taken at y = (1 - weight) z +
    weight x, which is what parameters hold. The weight of x grows after the warm-up.
    Its constants are those of the authors' language models. `eval()` puts x into the
    parameters, `train()` puts y back.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        warmup_steps: int,
        with_rmsprop: Iterable[Tensor] = (),
        weight_decay: float = 0.05,
    ):
        """warmup_steps: 0 counts as 1. with_rmsprop: more parameters without Muon, as
        embeddings."""
        settings = {
            "lr": lr,
            "warmup_steps": max(1, warmup_steps),
            "weight_decay": weight_decay,
            "steps": 0,
            "sum_of_squared_rates": 0.0,
            "share_after_warmup": 1.0,
            "weight": FIRST_WEIGHT,
            "holds_averages": False,
        }
        super().__init__(params, settings)
        self._with_rmsprop = set(with_rmsprop)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.train()
        for group in self.param_groups:
            group["steps"] += 1
            lr = group["lr"] * min(1.0, group["steps"] / group["warmup_steps"])
            group["sum_of_squared_rates"] += lr**2
            share = lr**2 / group["sum_of_squared_rates"]
            weight = _weight_of_averages(group, share)
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p] = self._initial_state(p)
                z = self.state[p]["z"]
                x = p.lerp(z, 1 - 1 / group["weight"])
                direction = self._direction(p, group["steps"])
                z.mul_(1 - lr * group["weight_decay"]).sub_(direction, alpha=lr)
                x.lerp_(z, share)
                p.copy_(z.lerp(x, weight))
            group["weight"] = weight

    def _initial_state(self, p: Tensor) -> dict[str, Tensor]:
        has_rmsprop = p.ndim < 2 or p in self._with_rmsprop
        moments = "square" if has_rmsprop else "momentum"
        return {"z": p.clone(), moments: torch.zeros_like(p)}

    def _direction(self, p: Tensor, steps: int) -> Tensor:
        state = self.state[p]
        assert p.grad is not None
        if "square" in state:
            state["square"].lerp_(p.grad.square(), 1 - SQUARE_DECAY)
            mean_square = state["square"] / (1 - SQUARE_DECAY**steps)
            return p.grad / (mean_square.sqrt() + EPSILON)
        state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
        matrix = p.grad.lerp(state["momentum"], MOMENTUM).flatten(1)  # Nesterov's
        direction = orthogonalized(matrix)
        return 0.2 * max(matrix.shape) ** 0.5 * direction.view_as(p)

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups:
            if not group["holds_averages"]:
                self._move(group, 1 - 1 / group["weight"])
            group["holds_averages"] = True

    @torch.no_grad()
    def train(self) -> None:
        for group in self.param_groups:
            if group["holds_averages"]:
                self._move(group, 1 - group["weight"])
            group["holds_averages"] = False

    def _move(self, group: dict, share: float) -> None:
        for p in group["params"]:
            if p in self.state:
                p.lerp_(self.state[p]["z"], share)


def _weight_of_averages(group: dict, share: float) -> float:
    """share: of the newest z in its average x."""
    if group["steps"] <= group["warmup_steps"]:
        group["share_after_warmup"] = share
        return FIRST_WEIGHT
    first = group["share_after_warmup"]
    ratio = share * (1 - first) / (first * (1 - share))
    return 1 - ratio**POWER * (1 - FIRST_WEIGHT)
