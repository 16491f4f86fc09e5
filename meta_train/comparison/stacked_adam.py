"""Trains copies of a network at once, each by Adam with settings of its own."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from meta_train.problems.situations.equations import Solver
from meta_train.problems.supervised import SupervisedProblem

WARMUP = 0.02  # share of the steps
BETA2, EPSILON = 0.999, 1e-8  # torch's

Params = dict[str, Tensor]  # each (copies, *shape)


class Settings(NamedTuple):
    """Of a copy; lr: the highest learning rate."""

    lr: float
    beta1: float


def lr_factor(step: int, steps: int) -> float:
    """Warm-up, times a line from one to zero. step: from 0."""
    return min(1.0, (step + 1) / (WARMUP * steps)) * (1 - step / steps)


def train_copies(
    problem: SupervisedProblem, seed: int, settings: Sequence[Settings], steps: int
) -> Tensor:
    """The training losses (copies,) after training on one full batch.

    All copies begin with the weights of the seed.
    """
    model = problem.init(seed)
    inputs, targets = problem.batch(seed, 0)
    params: Params = {}
    for name, p in model.named_parameters():
        params[name] = p.detach().repeat(len(settings), *[1] * p.dim())
        params[name].requires_grad_()
    tensors = list(params.values())
    loss = vmap(problem.objective.loss, (0, None))
    optimizer = StackedAdam(tensors, settings)
    for step in range(steps):
        losses = loss(stacked_outputs(model, params, inputs), targets)
        grads = torch.autograd.grad(losses.sum(), tensors)
        optimizer.step(grads, lr_factor(step, steps))
    return loss(stacked_outputs(model, params, inputs), targets).detach()


def stacked_outputs(model: nn.Module, params: Params, inputs: Tensor) -> Tensor:
    """Outputs (copies, n, ...) in training mode of all copies at inputs (n, ...)."""

    def outputs(own: Params, points: Tensor) -> Tensor:
        return functional_call(model, own, (points,))

    if not isinstance(model, Solver):
        return vmap(outputs, (0, None))(params, inputs)
    # Autograd does not differentiate with respect to points within vmap.
    copies = len(next(iter(params.values())))
    points = inputs.repeat(copies, 1).requires_grad_()
    model.eval()  # returns solutions instead of residuals
    solutions = vmap(outputs)(params, points.unflatten(0, (copies, -1)))
    residuals = model.equation.residual(solutions.flatten(), points)
    return residuals.view(copies, -1)


class StackedAdam:
    """Adam (Kingma and Ba 2015, Algorithm 1) with settings for each copy."""

    def __init__(self, params: Sequence[Tensor], settings: Sequence[Settings]):
        lrs, beta1s = torch.tensor(settings, dtype=torch.float64).unbind(1)
        self.lrs, self.beta1s = lrs, beta1s
        self.params, self.count = params, 0
        self.means = [torch.zeros_like(p) for p in params]
        self.squares = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], factor: float) -> None:
        """factor: of all learning rates."""
        self.count += 1
        lrs = factor * self.lrs / (1 - self.beta1s**self.count)
        correction = 1 - BETA2**self.count
        rows = zip(self.params, grads, self.means, self.squares, strict=True)
        for p, grad, mean, square in rows:
            shape = -1, *[1] * (p.dim() - 1)
            mean.lerp_(grad, (1 - self.beta1s).to(p).view(shape))
            square.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            deviation = (square / correction).sqrt_().add_(EPSILON)
            p.sub_(mean / deviation * lrs.to(p).view(shape))
