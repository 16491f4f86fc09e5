"""A small decoder, its training, and an optimizer of matrices."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ngopt import BlockwiseOptimizer
from tests.ngopt.audit.test_audit import TOKENS, Decoder

MUON = {"lr": 0.02, "momentum": 0.9}


class Orthogonal(torch.optim.Optimizer):
    """Muon in the dtype of the parameters, for (..., rows, columns)."""

    def __init__(
        self, params: Any, lr: float, momentum: float, weight_decay: float = 0
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        # K. Jordan's class asks for this
        assert all(set(g) == {"params", *defaults} for g in self.param_groups)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state.setdefault("momentum_buffer", torch.zeros_like(p))
                m = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                scale = max(1, p.shape[-2] / p.shape[-1])
                p.add_(newton_schulz(m), alpha=-group["lr"] * scale)


def newton_schulz(x: Tensor) -> Tensor:
    """Nearly orthogonal matrices (..., rows, columns)."""
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x


def decoder(is_fused: bool = True) -> Decoder:
    torch.manual_seed(0)
    return Decoder(is_fused).double()


def blockwise(model: nn.Module, **settings: Any) -> BlockwiseOptimizer:
    return BlockwiseOptimizer(
        model, TOKENS, Orthogonal, MUON, others_options={"lr": 1e-3}, **settings
    )


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(20, (4, 9), generator=generator)
    return cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(model: nn.Module, optimizer: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def hidden_of(model: nn.Module) -> list[nn.Parameter]:
    return [
        p for name, p in model.named_parameters() if "blocks" in name and p.ndim > 1
    ]
