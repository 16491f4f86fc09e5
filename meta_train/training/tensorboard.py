"""TensorBoard curves of a meta-training."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from meta_train.training.unroll import Optimizee, unroll
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

UPDATE_STEP = 100  # inner steps before the updates that are logged


def log_gradients(writer: SummaryWriter, step: int, metanet: nn.Module) -> None:
    """Logs the norm of the latest meta-gradient of each tensor."""
    for name, parameter in metanet.named_parameters():
        if parameter.grad is not None:
            norm = parameter.grad.norm()
            writer.add_scalar(f"meta_gradient/{name}", norm, step)


def log_updates(
    writer: SummaryWriter,
    step: int,
    optimizee: Optimizee,
    learned: LearnedOptimizer,
    horizon: int,
) -> None:
    """Logs norm of the update / norm of the parameter, after `UPDATE_STEP` inner steps.

    horizon: inner steps of a training. If it is shorter, its last update is logged.
    """
    rule = learned.bind(optimizee.graph)
    hyper = optimizee.hyper()
    steps = min(UPDATE_STEP, horizon - 1)
    with torch.no_grad():
        before = optimizee.start(rule)
        if steps > 0:
            before, _ = unroll(optimizee, before, rule, steps, hyper)
        after, _ = unroll(optimizee, before, rule, 1, hyper)
    rows = zip(optimizee.names, before.params, after.params, strict=True)
    for name, p, q in rows:
        ratio = ((q - p).norm() / p.norm().clamp(min=1e-12)).item()
        writer.add_scalar(f"update_to_weight/{name}", ratio, step)
