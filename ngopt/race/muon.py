"""Muon for matrices and kernels, Adam for the other parameters."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import Optimizer, _muon


class OptimizerOfParts(Optimizer):
    """Several optimizers of parts of the parameters, with one learning rate.

    Attributes:
        parts: the optimizers.
    """

    def __init__(self, params: Iterable[Tensor], lr: float):
        super().__init__(params, {"lr": lr})
        self.parts: list[Optimizer] = []

    def divided(self, with_adam: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters with two or more dimensions, and the others.

        with_adam: others whatever their dimensions.
        """
        given_to_adam = set(with_adam)
        matrices, others = [], []
        for p in self.param_groups[0]["params"]:
            is_other = p.ndim < 2 or p in given_to_adam
            (others if is_other else matrices).append(p)
        return matrices, others

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        parts = [part.state_dict() for part in self.parts]
        return {**super().state_dict(), "parts": parts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)


class MuonWithAdam(OptimizerOfParts):
    """Muon on parameters with two or more dimensions, AdamW on the others.

    `torch.optim.Muon` takes matrices alone, so it gets views of kernels, (out, in * k *
    k). Both parts use the same learning rate and weight decay; AdamW without weight
    decay is Adam. Vectors have no weight decay. On CPUs Muon's products are in float32:
    those in bfloat16 take 50 times as long where the CPU only emulates them.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        with_adam: Iterable[Tensor] = (),
        weight_decay: float = 0.0,
        adjust_lr_fn: str | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        """with_adam: other parameters for AdamW, such as embeddings. adjust_lr_fn: of
        `torch.optim.Muon`. betas: of AdamW.

        Raises ValueError for a kernel that is not contiguous, which has no such view.
        """
        super().__init__(params, lr)
        self._kernels, adam_params = self.divided(with_adam)
        self._matrices = []
        for p in self._kernels:
            if not p.is_contiguous():
                raise ValueError(
                    "MuonWithAdam: expected contiguous kernels; "
                    f"got strides {p.stride()} for shape {tuple(p.shape)}"
                )
            self._matrices.append(p.detach().view(len(p), -1))
        if self._matrices:
            muon = torch.optim.Muon(
                self._matrices, lr, weight_decay=weight_decay, adjust_lr_fn=adjust_lr_fn
            )
            self.parts.append(muon)
        if adam_params:
            vectors = [p for p in adam_params if p.ndim < 2]
            tables = [p for p in adam_params if p.ndim >= 2]
            groups = [{"params": vectors, "weight_decay": 0.0}, {"params": tables}]
            adam = torch.optim.AdamW(groups, lr, betas, weight_decay=weight_decay)
            self.parts.append(adam)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        products: Any = nullcontext()
        if self._matrices and self._matrices[0].is_cpu:
            products = patch.object(
                _muon, "_zeropower_via_newtonschulz", orthogonalized
            )
        with products:
            super().step()


def orthogonalized(
    grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> Tensor:
    """Newton-Schulz iterations of `torch.optim.Muon` in the dtype of grad, (m, n)."""
    a, b, c = ns_coefficients
    is_tall = len(grad) > grad.shape[1]
    x = grad.mT if is_tall else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
