"""Imitation of the bundled default optimizer."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meta_train.training.estimators.estimate import Estimate, detached, differentiable
from meta_train.training.rules import WeightedRule, as_vector
from meta_train.training.unroll import Inner, Optimizee, Optimizees, moved
from ngopt.functional import Record, update_all
from ngopt.pretrained import load_pretrained
from ngopt.pretrained.learned_optimizer import LearnedOptimizer


class ImitationState(NamedTuple):
    """inner: with the state of the rule that is trained. teacher: the state of the
    imitated rule."""

    inner: Inner
    teacher: list[Record]


class Imitation:
    """Imitates the bundled default along the default's training, as in phase 1 of ELO.

    The meta-loss is the mean over steps and tensors of |u - u*|^2 / |u*|^2, where u* is
    the update of the default and u that of the metanet, from the same weights and
    gradients. Its gradient is exact. Neither has a horizon.

    Raises ValueError for a stack whose optimizees are not at the same step.
    """

    def __init__(self) -> None:
        self.teacher = load_pretrained("default")

    def start(self, optimizee: Optimizee, learned: LearnedOptimizer) -> ImitationState:
        inner = optimizee.start(learned.bind(optimizee.graph))
        teacher = self.teacher.bind(optimizee.graph)
        return ImitationState(inner, teacher.init(inner.params))

    def estimate(
        self,
        optimizee: Optimizees,
        learned: LearnedOptimizer,
        state: ImitationState,
        steps: int,
    ) -> tuple[Estimate, ImitationState]:
        now = _shared_step(state.inner.step)
        weights, student = differentiable(optimizee, learned)
        # without weights, for one optimizee or a stack
        rule = self.teacher.bind(optimizee.graph)
        teacher = WeightedRule(rule, nn.Module(), (), optimizee.count, shares_step=True)
        total = [torch.zeros_like(w) for w in weights]
        hyper = optimizee.hyper()
        losses, inner_losses = [], []
        # updates with the same graph context are differentiated together
        window: list[Tensor] = []
        every = learned.metanet.graph_every
        inner, records = state
        for k in range(1, steps + 1):
            inner_loss, grads, buffers = optimizee.gradient(inner)
            inner_losses.append(inner_loss)
            with torch.no_grad():
                wanted, records = update_all(
                    teacher, grads, records, inner.params, hyper
                )
            with torch.enable_grad():
                deltas, state_after = update_all(
                    student, grads, inner.state, inner.params, hyper
                )
                loss = _distance(deltas, wanted, optimizee.count)
            window.append(loss.sum())
            losses.append(loss.detach())
            inner = moved(inner, wanted, state_after, buffers)
            if (now + k) % every == 0 or k == steps:
                gradients = torch.autograd.grad(window, weights, allow_unused=True)
                for i, gradient in enumerate(gradients):
                    if gradient is not None:
                        total[i] = total[i] + gradient / steps
                window = []
                inner = detached(inner)
        estimate = Estimate(
            meta_gradient=as_vector(total, optimizee.count),
            meta_loss=torch.stack(losses).mean(0),
            inner_loss=torch.stack(inner_losses).mean(0),
        )
        return estimate, ImitationState(inner, records)


def _shared_step(steps: Tensor) -> int:
    """The step of all optimizees of a stack."""
    numbers = set(steps.flatten().tolist())
    if len(numbers) > 1:
        raise ValueError(
            "imitation: expected optimizees at the same step; got steps "
            f"{sorted(numbers)}"
        )
    return numbers.pop()


def _distance(
    deltas: Sequence[Tensor | None],
    wanted: Sequence[Tensor | None],
    count: tuple[int, ...],
) -> Tensor:
    """Mean over tensors with an update of the relative squared difference, (*count)."""
    is_moved, sizes, errors = [], [], []
    for u, v in zip(deltas, wanted, strict=True):
        if u is not None and v is not None:
            u = u.reshape(*count, -1)
            v = v.reshape(*count, -1)
            is_moved.append(v.any(-1))
            sizes.append(v.square().sum(-1))
            errors.append((u - v).square().sum(-1))
    moved_tensors = torch.stack(is_moved)
    # torch.where needs no host sync
    shares = torch.stack(errors) / torch.where(moved_tensors, torch.stack(sizes), 1)
    return torch.where(moved_tensors, shares, 0).sum(0) / moved_tensors.sum(0)
