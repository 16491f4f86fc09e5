"""Constructors of the compared optimizers: lists that are stepped in sequence."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ngopt import NGOptimizer

HORIZON = 1000
BETAS, DECAY = (0.9, 0.95), 0.1  # of AdamW on language models

Optimizers = list[Optimizer]
Make = Callable[[nn.Module], Optimizers]


def adamw(model: nn.Module, lr: float = 1e-3) -> Optimizers:
    """Fused AdamW with weight decay on matrices and embeddings, as in nanoGPT."""
    return [_adamw([p for p in model.parameters() if p.requires_grad], lr)]


def _adamw(params: Sequence[nn.Parameter], lr: float) -> Optimizer:
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr, betas=BETAS, fused=True)


def muon(model: nn.Module, lr: float = 1e-3) -> Optimizers:
    """torch's Muon on hidden matrices, AdamW with the same lr on other parameters."""
    matrices, others = hidden_matrices(model)
    hidden = torch.optim.Muon(
        matrices, lr, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
    )
    return [hidden, _adamw(others, lr)]


def hidden_matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices other than embeddings and the output layer; all other parameters."""
    excluded: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or name.endswith("lm_head"):
            excluded.update(module.parameters())
    matrices = [p for p in model.parameters() if p.ndim == 2 and p not in excluded]
    return matrices, [p for p in model.parameters() if p.ndim != 2 or p in excluded]


def ngopt(
    model: nn.Module, total_steps: int | None = None, rule: str = "default"
) -> Optimizers:
    """Without `total_steps` the default stores averaged weights."""
    return [NGOptimizer(model.parameters(), total_steps=total_steps, rule=rule)]


OPTIMIZERS: dict[str, Make] = {
    "AdamW, fused": adamw,
    "default": partial(ngopt, total_steps=HORIZON),
    "default, eager": partial(ngopt, total_steps=HORIZON),
    "Muon + AdamW": muon,
    "default, no horizon": ngopt,
    "ff": partial(ngopt, rule="ff"),
    "ng-gnn": partial(ngopt, rule="ng-gnn"),
}
