"""Situations: short problems of many kinds, by what is hard for the optimizer.

A third of each kind is for development (`DEVELOPING`), a third for validation
(`VALIDATING`), and a third is run once, at the end (`TESTING`). The thirds differ in
networks, data and horizons. Texts, pretrained networks and synthetic targets belong to
one third only. `REAL` uses data of other packages, and is for reporting only.
"""

from __future__ import annotations

from meta_train.problems.protocol import Problem, by_name
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

_developing: dict[str, Problem] = {}
_validating: dict[str, Problem] = {}
_testing: dict[str, Problem] = {}
for kind in KINDS.values():
    _developing |= by_name(kind.developing)
    _validating |= by_name(kind.validating)
    _testing |= by_name(kind.testing)
_real = by_name(real.PROBLEMS)

SITUATIONS: dict[str, Problem] = _developing | _validating | _testing | _real
DEVELOPING = tuple(_developing)
VALIDATING = tuple(_validating)
TESTING = tuple(_testing)
REAL = tuple(_real)
