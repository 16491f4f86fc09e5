"""The best hand-made rule for a family: default, SOAP, Adam or Muon, each tuned."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from meta_train.specialize.family import HandRule
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from ngopt.specialized.first_order import SCHEDULES, FirstOrder

SCALES = tuple(2.0**k for k in range(-3, 5))  # of the default's steps
SOAP_LRS = tuple(0.001 * 2**k for k in range(8))
ONE_STEP_SIZE: dict[str, Any] = {
    **dict.fromkeys(("fan_exponent", "weight_exponent", "short_run_exponent"), 0.0),
    **dict.fromkeys(("trained_exponent", "undone_rate", "rare_exponent"), 0.0),
    **dict.fromkeys(("path_ratio_limit", "invariant", "embedding"), 1.0),
    **{"chain": float("inf"), "weight_decay": 0.0},
}
"""Constants of the default without its laws for step sizes: SOAP."""
GRIDS: dict[str, dict[str, Any]] = {
    "Adam": {
        "lr": [1e-4 * 10 ** (k / 2) for k in range(9)],
        "beta1": [0.5, 0.8, 0.9, 0.95],
    },
    "Muon": {"lr": [1e-3 * 10 ** (k / 2) for k in range(7)], "beta1": [0.8, 0.9, 0.95]},
}
BETA2S = [0.9, 0.95, 0.99, 0.999]
NEIGHBORS = 0.56, 0.75, 1.33, 1.78  # of the best rate, tried at the end

Loss = Callable[[HandRule], float]
"""Of a rule on the members of the search; lower is better."""


class Tuned(NamedTuple):
    """seconds: that the search took."""

    rule: HandRule
    loss: float
    seconds: float


def scaled(rule: Soap, scale: float) -> Soap:
    return Soap(replace(rule.config, step_size=scale * rule.config.step_size))


SOAPS = {
    "default": [scaled(Soap(), scale) for scale in SCALES],
    "SOAP": [Soap(SoapConfig(step_size=lr, **ONE_STEP_SIZE)) for lr in SOAP_LRS],
}
KINDS = *SOAPS, *GRIDS


def tuned(kind: str, loss: Loss) -> Tuned:
    """The best rule of a kind, by coordinates: rate, betas, schedule, and the rate
    again."""
    start = time.monotonic()
    if kind in SOAPS:
        rule, lowest = _best(SOAPS[kind], loss)
        nearer = [scaled(rule, x) for x in NEIGHBORS]
    else:
        rule = FirstOrder(uses_muon=kind == "Muon", beta1=GRIDS[kind]["beta1"][-2])
        lowest = float("inf")
        coordinates = {**GRIDS[kind], "beta2": BETA2S, "schedule": SCHEDULES}
        for name, values in coordinates.items():
            other, value = _best([replace(rule, **{name: x}) for x in values], loss)
            if value < lowest:
                rule, lowest = other, value
        nearer = [replace(rule, lr=x * rule.lr) for x in NEIGHBORS]
    other, value = _best(nearer, loss)
    if value < lowest:
        rule, lowest = other, value
    return Tuned(rule, lowest, time.monotonic() - start)


def _best(rules: Sequence[HandRule], loss: Loss) -> tuple[Any, float]:
    return min(((rule, loss(rule)) for rule in rules), key=lambda pair: pair[1])


def rules_of_search() -> int:
    """The number of rules that are tried."""
    grids = sum(len(values) for grid in GRIDS.values() for values in grid.values())
    of_each = len(GRIDS) * (len(BETA2S) + len(SCHEDULES))
    of_all = len(KINDS) * len(NEIGHBORS)
    return sum(map(len, SOAPS.values())) + grids + of_each + of_all
