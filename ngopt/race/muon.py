"""Muon for matrices and kernels, Adam for the other parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class MuonWithAdam(Optimizer):
    """Muon on parameters with two or more dimensions, AdamW on the others.

    `torch.optim.Muon` takes matrices alone, so it gets views of kernels, (out, in * k *
    k). Both parts use the same learning rate and weight decay; AdamW without weight
    decay is Adam. `state_dict` leaves out the momenta, so it cannot resume.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        with_adam: Iterable[Tensor] = (),
        weight_decay: float = 0.0,
        adjust_lr_fn: str | None = None,
    ):
        """with_adam: other parameters for AdamW, such as embeddings. adjust_lr_fn: of
        `torch.optim.Muon`.

        Raises ValueError for a kernel that is not contiguous, which has no such view.
        """
        super().__init__(params, {"lr": lr})
        given_to_adam = set(with_adam)
        self._kernels = []
        self._matrices = []
        adam_params = []
        for p in self.param_groups[0]["params"]:
            if p.ndim < 2 or p in given_to_adam:
                adam_params.append(p)
                continue
            if not p.is_contiguous():
                raise ValueError(
                    "MuonWithAdam: expected contiguous kernels; "
                    f"got strides {p.stride()} for shape {tuple(p.shape)}"
                )
            self._kernels.append(p)
            self._matrices.append(p.detach().view(len(p), -1))
        self._parts: list[Optimizer] = []
        if self._matrices:
            muon = torch.optim.Muon(
                self._matrices, lr, weight_decay=weight_decay, adjust_lr_fn=adjust_lr_fn
            )
            self._parts.append(muon)
        if adam_params:
            adam = torch.optim.AdamW(adam_params, lr, weight_decay=weight_decay)
            self._parts.append(adam)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for part in self._parts:
            part.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            part.step()
