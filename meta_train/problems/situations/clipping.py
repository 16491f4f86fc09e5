"""Clipped gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from meta_train.problems.situations import tables
from meta_train.problems.situations.kinds import read_kinds
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.supervised import Batch, SupervisedProblem

MAX_NORM = 1.0


class ClippedProblem(SupervisedProblem):
    """A problem whose gradient is clipped to `MAX_NORM`, as `clip_grad_norm_` does.

    `loss` has the value of the problem's loss and the clipped gradient. It has no
    second derivatives.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = super().loss(model, batch)
        if not loss.requires_grad:
            return loss
        params = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, params)
        norm = torch.stack([g.norm() for g in grads]).norm()
        factor = (MAX_NORM / (norm + 1e-6)).clamp(max=1)
        # linear in the parameters, with the clipped gradient
        products = []
        for p, g in zip(params, grads, strict=True):
            products.append((factor * g * p).sum())
        linear = torch.stack(products).sum()
        return loss.detach() + (linear - linear.detach())


classify_clipped = partial(classify, kind=ClippedProblem)
regress_clipped = partial(regress, kind=ClippedProblem)

KINDS = read_kinds(__file__, vars(tables) | globals())
