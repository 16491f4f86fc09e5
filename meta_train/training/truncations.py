"""What all ranks learn of every optimizee's truncation: the meta-gradient, losses, the
time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from harness.distributed import Ranks
from meta_train.training.estimators import Estimate
from meta_train.training.worker import Result


class Outcome(NamedTuple):
    """What all ranks know of one optimizee's truncation.

    meta_gradient: clipped; zero where it is not usable. norm: before clipping. seconds:
    of a core. Losses as in `Estimate`.
    """

    is_usable: bool
    meta_loss: float
    inner_loss: float
    first_loss: float
    norm: float
    seconds: float
    meta_gradient: Tensor


HEAD = len(Outcome._fields) - 1


def exchanged(
    own: Mapping[int, Result], count: int, like: Tensor, clip_norm: float, ranks: Ranks
) -> list[Outcome]:
    """The outcomes of so many optimizees, from the results that each rank has, by their
    numbers.

    like: of the metanet, (parameters,). clip_norm: the longest that a meta-gradient may
    be.
    """
    rows = torch.zeros(count, HEAD + like.numel(), dtype=torch.float64)
    for number, result in own.items():
        rows[number] = _row(result, clip_norm)
    return [_outcome(row, like) for row in ranks.summed(rows)]


def _row(result: Result, clip_norm: float) -> Tensor:
    estimate = result.estimate
    gradient, is_usable = estimate.meta_gradient, usable(estimate)
    numbers = [
        float(is_usable),
        estimate.meta_loss.item(),
        estimate.inner_loss.item(),
        result.first_loss,
        gradient.norm().item(),
        result.seconds,
    ]
    kept = clip(gradient, clip_norm) if is_usable else torch.zeros_like(gradient)
    head = torch.tensor(numbers, dtype=torch.float64)
    return torch.cat([head, kept.double().cpu()])


def _outcome(row: Tensor, like: Tensor) -> Outcome:
    is_usable, meta_loss, inner_loss, first_loss, norm, seconds = row[:HEAD].tolist()
    return Outcome(
        bool(is_usable),
        meta_loss,
        inner_loss,
        first_loss,
        norm,
        seconds,
        row[HEAD:].to(like),
    )


def usable(estimate: Estimate) -> bool:
    return all(bool(values.isfinite().all()) for values in estimate)


def clip(gradient: Tensor, norm: float) -> Tensor:
    """Scales a vector down to a norm if it is longer."""
    return gradient * min(1.0, norm / max(gradient.norm().item(), 1e-12))
