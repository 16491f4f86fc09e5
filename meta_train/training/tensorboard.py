"""What TensorBoard shows of a meta-training while it runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from meta_train.problems import Metrics
from meta_train.training.unroll import Optimizee, unroll
from ngopt.pretrained.learned_optimizer import LearnedOptimizer

# Inner steps after which the sizes of updates are shown.
UPDATES_SHOWN = 100


class LivePicture:
    """Curves in a folder over outer steps; those a resumed training makes again are
    dropped.

    outer_step: the last that the folder's checkpoint knows.
    """

    def __init__(self, folder: Path, outer_step: int):
        self._writer = SummaryWriter(str(folder), purge_step=outer_step + 1)

    def show_step(self, step: int, meta_loss: float, norm: float) -> None:
        """norm: of the meta-gradients before clipping."""
        self._writer.add_scalar("meta_loss", meta_loss, step)
        self._writer.add_scalar("meta_gradient_norm", norm, step)

    def show_validation(self, step: int, metrics: Metrics) -> None:
        self._writer.add_scalar("validation/loss", metrics.loss, step)
        if metrics.accuracy is not None:
            self._writer.add_scalar("validation/accuracy", metrics.accuracy, step)

    def show_gradients(self, step: int, metanet: nn.Module) -> None:
        """Norms of the metanet's latest meta-gradient, one for each tensor."""
        for name, parameter in metanet.named_parameters():
            if parameter.grad is not None:
                norm = parameter.grad.norm()
                self._writer.add_scalar(f"meta_gradient/{name}", norm, step)

    def show_updates(
        self, step: int, optimizee: Optimizee, learned: LearnedOptimizer
    ) -> None:
        """See `relative_updates`."""
        for name, share in relative_updates(optimizee, learned).items():
            self._writer.add_scalar(f"update_to_weight/{name}", share, step)

    def close(self) -> None:
        self._writer.close()


def relative_updates(
    optimizee: Optimizee, learned: LearnedOptimizer
) -> dict[str, float]:
    """Norm of the update of each of an optimizee's tensors, `UPDATES_SHOWN` steps into
    its training, to the tensor's own."""
    rule, hyper = learned.bind(optimizee.graph), optimizee.hyper()
    with torch.no_grad():
        start = optimizee.start(rule)
        before, _ = unroll(optimizee, start, rule, UPDATES_SHOWN, hyper)
        after, _ = unroll(optimizee, before, rule, 1, hyper)
    rows = zip(optimizee.names, before.params, after.params, strict=True)
    return {
        name: ((q - p).norm() / p.norm().clamp(min=1e-12)).item() for name, p, q in rows
    }
