"""Constructors of the compared optimizers."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.optim import AdamW, Optimizer

from ngopt import NGOptimizer
from ngopt.race.muon import MuonWithAdam
from ngopt.race.optimizers import parameters_for_adam

HORIZON = 1000
BETAS, DECAY = (0.9, 0.95), 0.1  # of AdamW on language models

Make = Callable[[nn.Module], Optimizer]


def adamw(model: nn.Module, lr: float = 1e-3) -> Optimizer:
    """Fused AdamW with weight decay on matrices and embeddings, as in nanoGPT."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr, betas=BETAS, fused=True)


def muon(model: nn.Module, lr: float = 1e-3) -> Optimizer:
    """torch's Muon on hidden matrices and kernels, AdamW on other parameters."""
    return MuonWithAdam(
        model.parameters(),
        lr,
        with_adam=parameters_for_adam(list(model.named_parameters())),
        weight_decay=DECAY,
        adjust_lr_fn="match_rms_adamw",
        betas=BETAS,
    )


def ngopt(
    model: nn.Module, total_steps: int | None = None, rule: str = "default"
) -> Optimizer:
    """Without `total_steps` the default stores averaged weights."""
    return NGOptimizer(model.parameters(), total_steps=total_steps, rule=rule)


OPTIMIZERS: dict[str, Make] = {
    "AdamW, fused": adamw,
    "default": partial(ngopt, total_steps=HORIZON),
    "default, eager": partial(ngopt, total_steps=HORIZON),
    "Muon + AdamW": muon,
    "default, no horizon": ngopt,
    "ff": partial(ngopt, rule="ff"),
    "ng-gnn": partial(ngopt, rule="ng-gnn"),
}
