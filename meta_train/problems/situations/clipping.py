"""Clipped gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from meta_train.problems.common import MNIST_14
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import CharacterRnn, RowRnn
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.tables import unscaled_regression
from meta_train.problems.situations.texts import CODE_0, windows
from meta_train.problems.supervised import Batch, SupervisedProblem
from meta_train.problems.text import VOCABULARY

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


GRU = partial(CharacterRnn, nn.GRU, VOCABULARY, 32, 64)
COLUMNS = partial(unscaled_regression, 16, 2.0, 25)
MLP = partial(mlp, (16, 64, 64, 1), nn.GELU)
LSTM = partial(RowRnn, nn.LSTM, 14, 64)

clip_gru = classify("clip-gru-200", partial(windows, CODE_0), GRU, 16, 200)
clip_columns = regress("clip-columns-300", COLUMNS, MLP, 64, 300)
clip_lstm = classify("clip-lstm-150", MNIST_14, LSTM, 32, 150)

KINDS = {
    "gradient clipping": Kind(
        developing=[ClippedProblem(**vars(clip_gru))],
        validating=[ClippedProblem(**vars(clip_columns))],
        testing=[ClippedProblem(**vars(clip_lstm))],
    )
}
