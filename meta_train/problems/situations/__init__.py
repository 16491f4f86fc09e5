"""Situations: short problems of many kinds, by what is hard for the optimizer.

Of each kind a third develops (`DEVELOPING`), a third validates what was chosen
(`VALIDATING`), and a third is run once, at the end (`TESTING`). They differ in
network, data and horizon; texts, trained networks and synthetic targets are of one
third alone. Beside the thirds, `REAL` has data of other packages, for reporting only.
"""

from __future__ import annotations

from itertools import chain

from meta_train.problems.protocol import Problem
from meta_train.problems.situations import (
    clipping,
    contrasts,
    drift,
    equations,
    finetuning,
    games,
    initialization,
    label_noise,
    real,
    rewards,
    tables,
    trainings,
    zero_init,
)
from meta_train.problems.situations.kinds import Kind

KINDS: dict[str, Kind] = {
    **trainings.KINDS,
    **initialization.KINDS,
    **finetuning.KINDS,
    **zero_init.KINDS,
    **contrasts.KINDS,
    **games.KINDS,
    **rewards.KINDS,
    **label_noise.KINDS,
    **drift.KINDS,
    **tables.KINDS,
    **equations.KINDS,
    **clipping.KINDS,
}

_DEVELOPING, _VALIDATING, _TESTING = (
    tuple(chain.from_iterable(part)) for part in zip(*KINDS.values(), strict=True)
)
SITUATIONS: dict[str, Problem] = {
    p.name: p for p in (*_DEVELOPING, *_VALIDATING, *_TESTING, *real.PROBLEMS)
}
DEVELOPING = tuple(p.name for p in _DEVELOPING)
VALIDATING = tuple(p.name for p in _VALIDATING)
TESTING = tuple(p.name for p in _TESTING)
REAL = tuple(p.name for p in real.PROBLEMS)
