"""Situations: short problems of many kinds, by what is hard for the optimizer.

A third of each kind is for development (`DEVELOPING`), a third for validation
(`VALIDATING`), and a third is run once, at the end (`TESTING`). The thirds differ in
networks, data and horizons. Texts, pretrained networks and synthetic targets belong to
one third only. `REAL` uses data of other packages, and is for reporting only.

`situations.csv` is the table of most, whose lists are "kind: third".
"""

from __future__ import annotations

from meta_train.problems.protocol import Problem, by_name
from meta_train.problems.situations import (
    drift,
    equations,
    finetuning,
    games,
    initialization,
    real,
    rewards,
    tables,
    variants,
    zero_init,
)
from meta_train.problems.situations.kinds import Kind, read_situations

_found: dict[str, Kind] = {**games.KINDS, **rewards.KINDS, **drift.KINDS}
_names: dict = {}
for module in (equations, finetuning, initialization, tables, variants, zero_init):
    _names |= vars(module)
for given, problem in read_situations("situations", _names):
    name, _, third = given.partition(": ")
    getattr(_found.setdefault(name, Kind([], [], [])), third).append(problem)
KINDS: dict[str, Kind] = {}
for name in (
    "short trainings", "long trainings", "batches of one and all",
    "bfloat16 parameters", "initial weights", "deep chains", "continued", "fine-tuned",
    "adapters", "zeros at first", "contrasts", "games", "rewards", "wrong labels",
    "drift", "factorisation", "rare tokens", "unscaled columns", "equations",
    "gradient clipping",
):  # fmt: skip
    KINDS[name] = _found[name]

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
