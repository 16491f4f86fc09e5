"""Imitation of a strong rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from meta_train.estimators.estimate import Estimate, detached
from meta_train.unroll import Inner, Optimizee, Optimizees, moved
from meta_train.weighted import trained_metanet
from ngopt.functional import Record, update_all
from ngopt.learned import LearnedOptimizer
from ngopt.pretrained import load_pretrained


class Imitated(NamedTuple):
    """Where an imitated inner training stands: `inner` with the state of the rule that is trained.

    teacher: the state of the rule that is imitated.
    """

    inner: Inner
    teacher: list[Record]


class Imitation:
    """Learns to do what a strong rule does, along its own training (as the first phase of ELO).

    The meta-loss is the mean over steps and tensors of |u - u*|^2 / |u*|^2, where u* is the update
    of the bundled default and u that of the metanet, from the same weights and gradients. Its
    gradient is exact. Both know no horizon: what a metanet does with one is no matter of its
    weights, and it could not tell how far the default's schedule is.

    Raises ValueError for a stack, which the default cannot step.
    """

    def __init__(self) -> None:
        self.teacher = load_pretrained("default")

    def start(
        self, optimizee: Optimizee, learned: LearnedOptimizer
    ) -> Imitated:
        inner = optimizee.start(learned.bind(optimizee.graph))
        return Imitated(
            inner, self.teacher.bind(optimizee.graph).init(inner.params)
        )

    def estimate(
        self,
        optimizee: Optimizees,
        learned: LearnedOptimizer,
        state: Imitated,
        steps: int,
    ) -> tuple[Estimate, Imitated]:
        if optimizee.count:
            raise ValueError(
                f"imitation: expected one optimizee at a time; got a stack of {optimizee.count[0]}"
            )
        student = learned.bind(optimizee.graph)
        teacher = self.teacher.bind(optimizee.graph)
        weights = list(trained_metanet(learned).parameters())
        total = [torch.zeros_like(w) for w in weights]
        hyper = optimizee.hyper()
        losses, inner_losses = [], []
        # what the graph said is kept for several updates, which are differentiated together
        window: list[Tensor] = []
        every = trained_metanet(learned).graph_every
        inner, records = state
        for _ in range(steps):
            inner_loss, grads, buffers = optimizee.gradient(inner)
            inner_losses.append(inner_loss)
            with torch.no_grad():
                wanted, records = update_all(
                    teacher, grads, records, inner.params, hyper
                )
            with torch.enable_grad():
                found, own = update_all(
                    student, grads, inner.state, inner.params, hyper
                )
                loss = _distance(found, wanted)
            window.append(loss)
            losses.append(loss.detach())
            inner = moved(inner, wanted, own, buffers)
            if inner.step % every == 0 or len(losses) == steps:
                some = torch.autograd.grad(window, weights, allow_unused=True)
                total = [
                    t if g is None else t + g / steps
                    for t, g in zip(total, some, strict=True)
                ]
                window = []
                inner = detached(inner)
        means = (torch.stack(some).mean() for some in (losses, inner_losses))
        estimate = Estimate(parameters_to_vector(total), *means)
        return estimate, Imitated(inner, records)


def _distance(
    found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]
) -> Tensor:
    """Mean over tensors of the relative squared difference; of those that are to move."""
    rows = zip(found, wanted, strict=True)
    pairs = [
        (u, v)
        for u, v in rows
        if u is not None and v is not None and bool(v.any())
    ]
    return torch.stack(
        [(u - v).square().sum() / v.square().sum() for u, v in pairs]
    ).mean()
