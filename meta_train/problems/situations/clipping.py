"""Clipped gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from meta_train.problems.common import MNIST_14
from meta_train.problems.networks.dense import mlp
from meta_train.problems.networks.sequential import CharacterRnn, RowRnn
from meta_train.problems.protocol import Metrics
from meta_train.problems.situations.kinds import Kind
from meta_train.problems.situations.problems import classify, regress
from meta_train.problems.situations.tables import unscaled_regression
from meta_train.problems.situations.texts import CODE_0, predict_characters
from meta_train.problems.supervised import SupervisedProblem
from meta_train.problems.text import VOCABULARY

MAX_NORM = 1.0


@dataclass(frozen=True)
class ClippedProblem:
    """A problem whose gradient is clipped to `MAX_NORM`, as `clip_grad_norm_` does.

    `loss` has the value of the problem's loss and the clipped gradient. It has no
    second derivatives.
    """

    problem: SupervisedProblem

    @property
    def name(self) -> str:
        return self.problem.name

    @property
    def steps(self) -> int:
        return self.problem.steps

    @property
    def batch_size(self) -> int | None:
        return self.problem.batch_size

    def init(self, seed: int) -> nn.Module:
        return self.problem.init(seed)

    def batch(self, seed: int, step: int) -> Any:
        return self.problem.batch(seed, step)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = self.problem.loss(model, batch)
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

    def evaluate(
        self, model: nn.Module, split: str, limit: int | None = None
    ) -> Metrics:
        return self.problem.evaluate(model, split, limit)


GRU = partial(CharacterRnn, nn.GRU, VOCABULARY, 32, 64)
COLUMNS = partial(unscaled_regression, 16, 2.0, 25)
MLP = partial(mlp, (16, 64, 64, 1), nn.GELU)
LSTM = partial(RowRnn, nn.LSTM, 14, 64)

clip_gru = predict_characters("clip-gru-200", CODE_0, GRU, 16, 200)
clip_columns = regress("clip-columns-300", COLUMNS, MLP, 64, 300)
clip_lstm = classify("clip-lstm-150", MNIST_14, LSTM, 32, 150)

KINDS = {
    "gradient clipping": Kind(
        developing=[ClippedProblem(clip_gru)],
        validating=[ClippedProblem(clip_columns)],
        testing=[ClippedProblem(clip_lstm)],
    )
}
