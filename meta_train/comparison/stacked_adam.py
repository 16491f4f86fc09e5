"""Trains copies of a network at once, each by Adam with settings of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from meta_train.problems.situations.equations import Solver
from meta_train.problems.supervised import SupervisedProblem

WARMUP = 0.02  # share of the steps
BETA2, EPSILON = 0.999, 1e-8  # torch's

Params = dict[str, Tensor]  # each (copies, *shape)


def lr_factor(step: int, steps: int) -> float:
    """Warm-up, times a line from one to zero. step: from 0."""
    return min(1.0, (step + 1) / (WARMUP * steps)) * (1 - step / steps)


def train_copies(
    problem: SupervisedProblem, seed: int, settings: Sequence[tuple], steps: int
) -> Tensor:
    """The training losses (steps + 1, copies) of Adam on the problem's full batch.

    All copies begin with the weights of the seed. The first row is before any step, the
    last after all of them. settings: lr and beta1 of each copy.
    """
    model = problem.init(seed)
    inputs, targets = problem.batch(seed, 0)
    loss = vmap(problem.objective.loss, (0, None))
    params, moments = {}, []
    for name, p in model.named_parameters():
        params[name] = p.detach().repeat(len(settings), *[1] * p.dim())
        moments.append((params[name] * 0, params[name] * 0))
        params[name].requires_grad_()
    lrs, beta1s = torch.tensor(settings, dtype=torch.float64).unbind(1)
    curves = []
    for step in range(steps):
        losses = loss(stacked_outputs(model, params, inputs), targets)
        curves.append(losses.detach())
        grads = torch.autograd.grad(losses.sum(), tuple(params.values()))
        sizes = lr_factor(step, steps) * lrs / (1 - beta1s ** (step + 1))
        correction = 1 - BETA2 ** (step + 1)
        for p, grad, (mean, square) in zip(
            params.values(), grads, moments, strict=True
        ):
            of_copy = -1, *[1] * (p.dim() - 1)
            mean.lerp_(grad, (1 - beta1s).to(p).view(of_copy))
            square.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            deviation = (square / correction).sqrt_().add_(EPSILON)
            p.data.sub_(mean / deviation * sizes.to(p).view(of_copy))
    last = loss(stacked_outputs(model, params, inputs), targets).detach()
    return torch.stack([*curves, last])


def stacked_outputs(model: nn.Module, params: Params, inputs: Tensor) -> Tensor:
    """Outputs (copies, n, ...) in training mode of all copies at inputs (n, ...)."""

    def outputs(of_copy: Params, points: Tensor) -> Tensor:
        return functional_call(model, of_copy, (points,))

    if not isinstance(model, Solver):
        return vmap(outputs, (0, None))(params, inputs)
    # Autograd does not differentiate with respect to points within vmap.
    copies = len(next(iter(params.values())))
    points = inputs.repeat(copies, 1).requires_grad_()
    model.eval()  # returns solutions instead of residuals
    solutions = vmap(outputs)(params, points.unflatten(0, (copies, -1)))
    residuals = model.equation.residual(solutions.flatten(), points)
    return residuals.view(copies, -1)
