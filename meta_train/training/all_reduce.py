"""Sums the results of truncations over ranks, so that all ranks have all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from harness.distributed import Ranks
from meta_train.training.estimators import Estimate
from meta_train.training.worker import Result


class ReducedResult(NamedTuple):
    """The result of one optimizee's truncation on all ranks, without its state.

    is_usable: whether all numbers are finite. meta_gradient: clipped; zero if not
    usable. norm: before clipping. seconds: of a core. Losses as in `Estimate`.
    """

    is_usable: bool
    meta_loss: float
    inner_loss: float
    first_loss: float
    norm: float
    seconds: float
    meta_gradient: Tensor


SCALARS = len(ReducedResult._fields) - 1


def all_reduce_results(
    own: Mapping[int, Result], count: int, like: Tensor, clip_norm: float, ranks: Ranks
) -> list[ReducedResult]:
    """The results of all `count` optimizees.

    own: results of this rank by the optimizee's number. like: the metanet's parameters,
    (parameters,). clip_norm: largest norm of a meta-gradient.
    """
    rows = torch.zeros(count, SCALARS + like.numel(), dtype=torch.float64)
    for number, result in own.items():
        rows[number] = _row(result, clip_norm)
    found = []
    for row in ranks.all_reduce(rows):
        is_usable, *scalars = row[:SCALARS].tolist()
        gradient = row[SCALARS:].to(like)
        found.append(ReducedResult._make([bool(is_usable), *scalars, gradient]))
    return found


def _row(result: Result, clip_norm: float) -> Tensor:
    """A result as one tensor, (SCALARS + parameters,)."""
    estimate = result.estimate
    gradient, is_usable = estimate.meta_gradient, usable(estimate)
    scalars = [
        float(is_usable),
        estimate.meta_loss.item(),
        estimate.inner_loss.item(),
        result.first_loss,
        gradient.norm().item(),
        result.seconds,
    ]
    kept = clip(gradient, clip_norm) if is_usable else torch.zeros_like(gradient)
    head = torch.tensor(scalars, dtype=torch.float64)
    return torch.cat([head, kept.double().cpu()])


def usable(estimate: Estimate) -> bool:
    return all(bool(values.isfinite().all()) for values in estimate)


def clip(gradient: Tensor, norm: float) -> Tensor:
    """Scales a vector down to a norm if it is longer."""
    return gradient * min(1.0, norm / max(gradient.norm().item(), 1e-12))
