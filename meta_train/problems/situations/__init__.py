"""Situations: short problems of every kind that people train in, by what is hard in them.

Of each kind a third develops (`DEVELOPING`), a third validates what was chosen
(`VALIDATING`), and a third is run once, at the end (`TESTING`). They differ in network,
data and horizon, so that what holds for one of a kind is not read off another.
"""

from __future__ import annotations

from itertools import chain

from meta_train.problems.protocol import Problem
from meta_train.problems.situations import (
    contrasts,
    equations,
    finetuning,
    games,
    rewards,
    starts,
    streams,
    tables,
    trainings,
    zeros,
)
from meta_train.problems.situations.kinds import Kind

KINDS: dict[str, Kind] = {
    **trainings.KINDS,
    **starts.KINDS,
    **finetuning.KINDS,
    **zeros.KINDS,
    **contrasts.KINDS,
    **games.KINDS,
    **rewards.KINDS,
    **streams.KINDS,
    **tables.KINDS,
    **equations.KINDS,
}

_DEVELOPING, _VALIDATING, _TESTING = (
    tuple(chain.from_iterable(part)) for part in zip(*KINDS.values(), strict=True)
)
SITUATIONS: dict[str, Problem] = {
    p.name: p for p in (*_DEVELOPING, *_VALIDATING, *_TESTING)
}
DEVELOPING = tuple(p.name for p in _DEVELOPING)
VALIDATING = tuple(p.name for p in _VALIDATING)
TESTING = tuple(p.name for p in _TESTING)
